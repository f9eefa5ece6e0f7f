"""mlp: the two-layer perceptron of a transformer block.

    h = x W1^T + b1,   a = h Phi(h),   y = a W2^T + b2

x (..., D), W1 (F, D), b1 (F,), W2 (O, F), b2 (O,) -> y (..., O), usually with O = D. Phi is the standard normal
distribution function: GELU in its exact form, with erf. Backward, with g = dy W2: dh = g (Phi(h) + h phi(h)), phi the
normal density; the rest are the gradients of the two linear layers. h is kept; a is kept for dW2, or computed again.
Sources: Hendrycks and Gimpel 2016 (GELU); Vaswani et al. 2017, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels import gpu
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.linear import onednn_missing, onednn_refuses


def cost(rows: int, width: int, hidden: int, *, bytes_per_element: int = 2, backward: bool = False) -> Cost:
    """Least work on (rows, width): weights and rows moved once, h written by the forward pass and read by backward.

    GELU and its derivative cost one erf each, the derivative an exponential on top.
    """
    moved = 2 * width * hidden + rows * (2 * width + hidden)
    if backward:
        moved += 2 * width * hidden + rows * width
    flop = (8 if backward else 4) * rows * width * hidden
    return Cost(bytes=moved * bytes_per_element, flop=flop, exps=(2 if backward else 1) * rows * hidden)


def reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """The definition; see the module's text for the formula."""
    return functional.linear(functional.gelu(functional.linear(x, w1, b1)), w2, b2)


OPERATION = Operation("mlp", reference)


def _triton_refuses(x: Tensor, *weights: Tensor) -> str | None:
    if x.dtype == torch.float64:
        return "computes in float32 or narrower"
    if gpu.autocast_dtype(x) is None and any(weight.dtype != x.dtype for weight in weights):
        return "x and the weights differ in dtype"
    return None


@OPERATION.backend(
    "triton",
    devices=gpu.DEVICES,
    why="GELU runs inside the products, or in one pass in each direction",
    missing=gpu.missing,
    refuses=_triton_refuses,
)
def _triton(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    from omnitrunk.kernels.mlp import triton_kernels

    return triton_kernels.mlp(x, w1, b1, w2, b2)


@OPERATION.backend(
    "onednn",
    devices=("cpu",),
    why="oneDNN compiles the products for this processor",
    missing=onednn_missing,
    refuses=onednn_refuses,
)
def _onednn(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    from omnitrunk.kernels.mlp import onednn

    return onednn.mlp(x, w1, b1, w2, b2)


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *, backend: str = "auto") -> Tensor:
    """Linear layer, exact GELU, linear layer.

    x (..., D) floating, w1 (F, D), b1 (F,), w2 (O, F), b2 (O,) -> (..., O). Differentiable in all five. Raises
    ValueError where the shapes do not fit together.
    """
    if w1.shape[1:] != x.shape[-1:] or b1.shape != w1.shape[:1]:
        raise ValueError(f"mlp: w1 {tuple(w1.shape)}, b1 {tuple(b1.shape)} do not fit x {tuple(x.shape)}")
    if w2.shape[1:] != w1.shape[:1] or b2.shape != w2.shape[:1]:
        raise ValueError(f"mlp: w2 {tuple(w2.shape)}, b2 {tuple(b2.shape)} do not fit w1 {tuple(w1.shape)}")
    return OPERATION.run(backend, x, w1, b1, w2, b2)
