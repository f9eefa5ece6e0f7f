"""layer_norm: residual add, LayerScale, drop path and LayerNorm in one pass.

    r' = r + drop_scale * layer_scale * x          (only where a residual is given)
    y  = (r' - mean(r')) / sqrt(var(r') + eps) * weight + bias

x, r, y (..., D); weight, bias, layer_scale (D,); drop_scale one number per row of the leading axis (B,), 0 where the
branch is dropped and 1 / keep probability where it is kept. Mean and biased variance are taken over D, in float32 or
wider.
Sources: Ba et al. 2016 (LayerNorm); Touvron et al. 2021, section 2 (LayerScale); Huang et al. 2016 (stochastic depth).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels import gpu
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.layer_norm import peers


def cost(rows: int, width: int, *, bytes_per_element: int = 2, residual: bool = False, backward: bool = False) -> Cost:
    """Least work on (rows, width): one read and one write of each tensor involved, statistics kept on chip."""
    tensors = {(False, False): 2, (False, True): 3, (True, False): 4, (True, True): 4}[residual, backward]
    elements = rows * width
    return Cost(bytes=tensors * elements * bytes_per_element, flop=(16 if backward else 8) * elements)


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    layer_scale: Tensor | None = None,
    drop_scale: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition; see the module's text for the formula."""
    if residual is None:
        return functional.layer_norm(x, weight.shape, weight, bias, eps)
    branch = x if layer_scale is None else x * layer_scale
    if drop_scale is not None:
        branch = branch * drop_scale.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    stream = residual + branch
    return functional.layer_norm(stream, weight.shape, weight, bias, eps), stream


OPERATION = Operation("layer_norm", reference)


@OPERATION.backend("triton", devices=gpu.DEVICES, why="one pass over memory in each direction", missing=gpu.missing)
def _triton(*call: Any) -> Tensor | tuple[Tensor, Tensor]:
    from omnitrunk.kernels.layer_norm import triton_kernels

    return triton_kernels.layer_norm(*call)


peers.register(OPERATION)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    *,
    residual: Tensor | None = None,
    layer_scale: Tensor | None = None,
    drop_scale: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """LayerNorm over the last axis, optionally of a residual stream that a branch is first added to.

    x (..., D) floating; weight, bias (D,); residual (..., D); layer_scale (D,); drop_scale (B,) with x (B, ..., D).
    Returns y (..., D); with a residual, (y, r'), where r' is the stream to carry on. Differentiable in all tensors but
    drop_scale. Raises ValueError where a scale is given without the residual that it scales into.
    """
    if residual is None and (layer_scale is not None or drop_scale is not None):
        raise ValueError("layer_norm: layer_scale and drop_scale scale a branch into a residual; pass residual= too")
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"layer_norm: weight {tuple(weight.shape)} does not match the last axis of x {tuple(x.shape)}")
    return OPERATION.run(backend, x, weight, bias, eps, residual, layer_scale, drop_scale)
