"""mlp: the two-layer perceptron of a transformer block.

    h = x W1^T + b1,   a = h Phi(h),   y = a W2^T + b2

x (..., D), W1 (F, D), b1 (F,), W2 (O, F), b2 (O,) -> y (..., O), usually with O = D. Phi is the standard normal
distribution function: GELU in its exact form, with erf. Backward, with g = dy W2: dh = g (Phi(h) + h phi(h)), phi the
normal density; the rest are the gradients of the two linear layers. Both h and a are kept: to recompute a from h takes
an erf per element.
Sources: Hendrycks and Gimpel 2016 (GELU); Vaswani et al. 2017, section 3.3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.linear import (
    cropped,
    onednn_missing,
    onednn_product,
    onednn_refuses,
    onednn_weight_gradient,
    padded_rows,
)


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


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        rows = padded_rows(x)
        hidden = onednn_product(rows, w1, b1)
        active = functional.gelu(hidden)
        ctx.save_for_backward(rows, w1, hidden, active, w2)
        ctx.shape = x.shape
        return cropped(onednn_product(active, w2, b2), x.shape[:-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, w1, hidden, active, w2 = ctx.saved_tensors
        needs_x, needs_w1, needs_b1, needs_w2, needs_b2 = ctx.needs_input_grad
        grad = padded_rows(grad)
        grad_w2 = onednn_weight_gradient(grad, active) if needs_w2 else None
        grad_hidden = onednn_product(grad, w2.t())
        torch.ops.aten.gelu_backward.grad_input(grad_hidden, hidden, approximate="none", grad_input=grad_hidden)
        grad_x = cropped(onednn_product(grad_hidden, w1.t()), ctx.shape[:-1]) if needs_x else None
        grad_w1 = onednn_weight_gradient(grad_hidden, rows) if needs_w1 else None
        return grad_x, grad_w1, grad_hidden.sum(0) if needs_b1 else None, grad_w2, grad.sum(0) if needs_b2 else None


@OPERATION.backend(
    "onednn",
    devices=("cpu",),
    why="oneDNN compiles the products for this processor",
    missing=onednn_missing,
    refuses=onednn_refuses,
)
def _onednn(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return _Mlp.apply(x, w1, b1, w2, b2)


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
