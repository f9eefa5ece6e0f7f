"""linear: y = x W^T + b.

x (..., K), W (N, K), b (N,) -> y (..., N). Backward: dx = dy W, dW = dy^T x, db = column sums of dy.

On CPUs the matrix products are most of a training step, and torch sends those in float32 to MKL, which stays at half of
the peak on processors that it was not tuned for. oneDNN, which torch ships too, generates code for the processor at
hand: 1.6 to 2.2 times faster on AMD Zen 5. It does so for every new shape (half a millisecond, then cached), and row
counts that come from masks change from step to step; they are therefore rounded up with zeros, to a multiple of ROWS,
or of less where that would be more than a 32nd.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation

FEWEST_ROWS, ROWS = 8, 64
"""What numbers of rows are multiples of, the smallest and the largest."""


def cost(rows: int, inputs: int, outputs: int, *, bytes_per_element: int = 2, backward: bool = False) -> Cost:
    """Least work on (rows, inputs) -> (rows, outputs): each matrix moved once; backward makes two products."""
    matrices = rows * inputs + inputs * outputs + rows * outputs
    if backward:
        matrices += rows * inputs + inputs * outputs
    return Cost(bytes=matrices * bytes_per_element, flop=(4 if backward else 2) * rows * inputs * outputs)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition; see the module's text for the formula."""
    return functional.linear(x, weight, bias)


OPERATION = Operation("linear", reference)


def padded_count(rows: int) -> int:
    """How many rows `padded_rows` makes of so many; a multiple of ROWS stays what it is."""
    # At most 32 sizes between one power of two and the next.
    step = min(max(FEWEST_ROWS, (1 << rows.bit_length()) // 64), ROWS)
    return -(-rows // step) * step


def padded_rows(x: Tensor) -> Tensor:
    """Return x (..., K) as a matrix (R, K), its rows rounded up with zeros."""
    rows, width = prod(x.shape[:-1]), x.shape[-1]
    count = padded_count(rows)
    if count == rows:
        return x.reshape(rows, width)
    padded = x.new_empty(count, width)
    padded[:rows].view(x.shape).copy_(x)
    padded[rows:].zero_()
    return padded


def cropped(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """Turn a fresh matrix (R, N) in place into (*shape, N), without the rows that `padded_rows` added.

    In place, because autograd lets nobody modify an output that is a view.
    """
    return matrix.resize_(*shape, matrix.shape[1])


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply x (R, K) by weight (N, K) transposed -> (R, N), computed by oneDNN whatever the strides of the two."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def onednn_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Multiply grad (R, N) transposed by x (R, K) -> (N, K).

    oneDNN is faster when the shorter side comes first. What comes out transposed is copied as soon as autograd stores
    it, though, and with few rows that costs more than it gains.
    """
    rows, outputs, inputs = *grad.shape, x.shape[1]
    if inputs < outputs and inputs < rows:
        return onednn_product(x.t(), grad.t()).t()
    return onednn_product(grad.t(), x.t())


@functools.cache
def onednn_missing() -> str | None:
    """Why products do not go to oneDNN on this machine, or None."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return "this torch was built without oneDNN"
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "the processor has no AVX-512, and without it MKL is as fast"
    return None


def onednn_refuses(x: Tensor, weight: Tensor, *_others: Tensor | None) -> str | None:
    """Why oneDNN cannot take a product of `x` and `weight`, or None."""
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        return f"computes in float32, not in {x.dtype} and {weight.dtype}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses another dtype"
    if torch.compiler.is_compiling():
        return "torch.compile plans products itself"
    if x.numel() == 0 or weight.numel() == 0:
        return "nothing to multiply"
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        return "rows of the weight lie apart, for which it has only its reference implementation"
    return None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = padded_rows(x)
        ctx.save_for_backward(rows, weight)
        ctx.shape = x.shape
        return cropped(onednn_product(rows, weight, bias), x.shape[:-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        grad = padded_rows(grad)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = cropped(onednn_product(grad, weight.t()), ctx.shape[:-1]) if needs_x else None
        grad_weight = onednn_weight_gradient(grad, rows) if needs_weight else None
        return grad_x, grad_weight, grad.sum(0) if needs_bias else None


@OPERATION.backend(
    "onednn",
    devices=("cpu",),
    why="oneDNN compiles the product for this processor",
    missing=onednn_missing,
    refuses=onednn_refuses,
)
def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Linear.apply(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Multiply x by `weight` transposed and add `bias`.

    x (..., K) floating, weight (N, K), bias (N,) -> (..., N). Differentiable in all three. Raises ValueError where the
    widths differ.
    """
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(f"linear: weight {tuple(weight.shape)} does not match the last axis of x {tuple(x.shape)}")
    return OPERATION.run(backend, x, weight, bias)
