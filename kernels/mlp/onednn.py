"""mlp on CPUs: the products by oneDNN, GELU in one pass in each direction.

Of the two hidden matrices only h is kept. The backward pass reads it, computes gelu(h) again together with gelu'(h),
and takes the sums for db1 on the way: the exponential costs less than memory that has to be kept. It takes so many rows
at a time that their hidden matrices stay in the cache. Without the compiled module torch's GELU does the same work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels import native
from omnitrunk.kernels.linear import FEWEST_ROWS, ROWS, cropped, onednn_product, onednn_weight_gradient, padded_rows

BLOCK_VALUES = 3 << 18
"""3 MiB of float32: what a part of a hidden matrix takes in the backward pass, unless its rows are few."""


def _parts(rows: int, hidden: int, width: int) -> list[slice]:
    """Slices of rows, each of so many that adding up gradients of weights costs little beside the products."""
    count = -(-rows // max(ROWS, BLOCK_VALUES // hidden, 8 * width))
    size = -(-rows // (count * FEWEST_ROWS)) * FEWEST_ROWS
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def _sum(total: Tensor | None, part: Tensor) -> Tensor:
    """The sum, in the memory of `total` if there is any yet."""
    return part if total is None else total.add_(part)


def _gelu(hidden: Tensor, kept: bool) -> Tensor:
    """GELU of a matrix, in its place unless that is to be kept."""
    if not native.available():
        return functional.gelu(hidden)
    return native.gelu(hidden, torch.empty_like(hidden) if kept else hidden)


def _gelu_backward(grad: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the gradient of GELU(h) into that of h, in place; return GELU(h) and the sums of it down the columns."""
    if native.available():
        return native.gelu_backward_(grad, hidden)
    torch.ops.aten.gelu_backward.grad_input(grad, hidden, approximate="none", grad_input=grad)
    return functional.gelu(hidden), grad.sum(0)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        rows = padded_rows(x)
        hidden = onednn_product(rows, w1, b1)
        ctx.save_for_backward(rows, w1, hidden, w2)
        ctx.shape = x.shape
        return cropped(onednn_product(_gelu(hidden, any(ctx.needs_input_grad)), w2, b2), x.shape[:-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, w1, hidden, w2 = ctx.saved_tensors
        needs_x, needs_w1, needs_b1, needs_w2, needs_b2 = ctx.needs_input_grad
        grad, grad_b1, grad_w1, grad_w2, grads_x = padded_rows(grad), None, None, None, []
        for part in _parts(*hidden.shape, grad.shape[1]):
            grad_hidden = onednn_product(grad[part], w2.t())
            active, sums = _gelu_backward(grad_hidden, hidden[part])
            grad_b1 = _sum(grad_b1, sums) if needs_b1 else None
            grad_w2 = _sum(grad_w2, onednn_weight_gradient(grad[part], active)) if needs_w2 else None
            del active
            grad_w1 = _sum(grad_w1, onednn_weight_gradient(grad_hidden, rows[part])) if needs_w1 else None
            grads_x += [onednn_product(grad_hidden, w1.t())] if needs_x else []
        grad_x = torch.cat(grads_x) if len(grads_x) > 1 else grads_x[0] if needs_x else None
        grad_x = cropped(grad_x, ctx.shape[:-1]) if needs_x else None
        return grad_x, grad_w1, grad_b1, grad_w2, grad.sum(0) if needs_b2 else None


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """The operation in float32; see omnitrunk.kernels.mlp."""
    return _Mlp.apply(x, w1, b1, w2, b2)
