"""GELU and its derivative inside Triton kernels: one and two special-function instructions, no branches.

With u = |x| and q(u) = Phi(-u), the lower tail of the normal distribution,

    gelu(x) = max(x, 0) - u q,    gelu'(x) = s for x < 0 and 1 - s otherwise, s = q - u phi(u).

No term cancels. log2 q is smooth and nearly quadratic, so q = 2^p(u) with a short polynomial p: the minimax fit of
log2 q in float64, weighted by what an error does to the result. Its leading coefficient is negative, so that beyond the
interval of the fit q falls to 0 by itself, and nothing needs clipping. Errors against float64, before rounding:

    EXACT=False, for 16-bit results: |error| <= max(2^-13 |gelu|, 2e-8), and 3.2e-5 for the derivative
    EXACT=True, for float32:         |error| <= 3e-7 max(|x|, 1), and 3e-7 for the derivative

NaN stays NaN, and an infinite x gives NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def lower_tail(u, EXACT: tl.constexpr):
    # Phi(-u) for u >= 0.
    if EXACT:
        p = -2.8741382607222477e-8 * u + 8.293098403555632e-7
        p = p * u - 1.0382765140093397e-5
        p = p * u + 7.161313988035545e-5
        p = p * u - 2.5842717150226235e-4
        p = p * u - 5.275000148685649e-5
        p = p * u + 7.021227851510048e-3
        p = p * u - 5.2497874945402145e-2
        p = p * u - 0.45920008420944214
        p = p * u - 1.1511069536209106
        p = p * u - 0.9999999403953552
    else:
        p = -3.466894559096545e-4 * u + 6.077269092202187e-3
        p = p * u - 4.906199127435684e-2
        p = p * u - 0.46302804350852966
        p = p * u - 1.1496727466583252
        p = p * u - 1.0000853538513184
    return tl.exp2(p)


@triton.jit
def gelu(x, EXACT: tl.constexpr):
    u = tl.abs(x)
    return tl.maximum(x, 0.0) - u * lower_tail(u, EXACT)


@triton.jit
def gelu_derivative(x, EXACT: tl.constexpr):
    u = tl.abs(x)
    # phi(u) = 2^(-log2(e) u^2 / 2 - log2(2 pi) / 2)
    density = tl.exp2(-0.7213475204444817 * u * u - 1.3257480647361593)
    s = lower_tail(u, EXACT) - u * density
    return tl.where(x < 0, s, 1.0 - s)
