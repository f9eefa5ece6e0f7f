"""mlp on CPUs: the products by oneDNN, GELU with its derivative in one pass.

Forward keeps gelu'(h) instead of h, so that backward multiplies by it, and takes the sums for db1 on the way: no second
exponential, and nothing is read twice. Without the compiled module torch's GELU does the same work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels import native
from omnitrunk.kernels.linear import cropped, onednn_product, onednn_weight_gradient, padded_rows


def _gelu(hidden: Tensor, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """GELU of a matrix that nobody else reads, and what `_gelu_backward` needs."""
    if not native.available():
        return functional.gelu(hidden), hidden
    derivative = torch.empty_like(hidden) if differentiate else None
    native.gelu_(hidden, derivative)
    return hidden, derivative


def _gelu_backward(grad: Tensor, kept: Tensor) -> Tensor:
    """Turn the gradient of GELU(h) into that of h, in place, and return its sums down the columns."""
    if native.available():
        return native.gelu_backward_(grad, kept)
    torch.ops.aten.gelu_backward.grad_input(grad, kept, approximate="none", grad_input=grad)
    return grad.sum(0)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        rows = padded_rows(x)
        active, kept = _gelu(onednn_product(rows, w1, b1), any(ctx.needs_input_grad))
        ctx.save_for_backward(rows, w1, active, kept, w2)
        ctx.shape = x.shape
        return cropped(onednn_product(active, w2, b2), x.shape[:-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, w1, active, kept, w2 = ctx.saved_tensors
        needs_x, needs_w1, needs_b1, needs_w2, needs_b2 = ctx.needs_input_grad
        grad = padded_rows(grad)
        grad_w2 = onednn_weight_gradient(grad, active) if needs_w2 else None
        grad_hidden = onednn_product(grad, w2.t())
        grad_b1 = _gelu_backward(grad_hidden, kept)
        grad_x = cropped(onednn_product(grad_hidden, w1.t()), ctx.shape[:-1]) if needs_x else None
        grad_w1 = onednn_weight_gradient(grad_hidden, rows) if needs_w1 else None
        return grad_x, grad_w1, grad_b1 if needs_b1 else None, grad_w2, grad.sum(0) if needs_b2 else None


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """The operation in float32; see omnitrunk.kernels.mlp."""
    return _Mlp.apply(x, w1, b1, w2, b2)
