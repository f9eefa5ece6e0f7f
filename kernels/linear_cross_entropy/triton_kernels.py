"""Softmax, cross entropy and its gradient for linear_cross_entropy on GPUs, in one pass.

One program per row: it reads the logits, keeps them on chip, and writes the gradient in their place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.library import operator


@triton.jit
def softmax_kernel(
    logits, target, losses, classes, ignore_index, label_smoothing,
    WEIGHTS: tl.constexpr, DIFFERENTIATE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    LOG2_E: tl.constexpr = 1.4426950408889634
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE)
    inside = column < classes
    value = tl.load(logits + row * classes + column, mask=inside, other=-float("inf")).to(tl.float32)
    top = tl.max(value, 0)
    exp = tl.exp2((value - top) * LOG2_E)
    total = tl.sum(exp, 0)
    if WEIGHTS:
        weight = tl.load(target + row * classes + column, mask=inside, other=0.0).to(tl.float32)
        weight = tl.where(inside, weight * (1.0 - label_smoothing) + label_smoothing / classes, 0.0)
        mass = tl.sum(weight, 0)
    else:
        label = tl.load(target + row)
        weight = tl.where(column == label, 1.0 - label_smoothing, 0.0)
        weight = tl.where(inside, weight + label_smoothing / classes, 0.0)
        mass = 1.0
    loss = (top + tl.log(total)) * mass - tl.sum(weight * tl.where(weight == 0, 0.0, value), 0)
    grad = exp * (mass / total) - weight
    if not WEIGHTS:
        loss = tl.where((label < 0) | (label >= classes), float("nan"), loss)
        loss = tl.where(label == ignore_index, 0.0, loss)
        grad = tl.where(label == ignore_index, 0.0, grad)
    tl.store(losses + row, loss)
    if DIFFERENTIATE:
        tl.store(logits + row * classes + column, grad.to(logits.dtype.element_ty), mask=inside)


@operator(mutates=("logits",))
def softmax_gradient(
    logits: Tensor, target: Tensor, label_smoothing: float, ignore_index: int, differentiate: bool
) -> Tensor:
    """Losses of contiguous rows of logits (R, C) -> float32 (R,), and on request the gradient in place of the logits.

    target int64 (R,) or weights (R, C), contiguous.
    """
    rows, classes = logits.shape
    losses = gpu.new((rows,), torch.float32, logits.device)
    gpu.launch(
        softmax_kernel, (rows,), logits, target, losses, classes, ignore_index, label_smoothing,
        WEIGHTS=target.dim() == 2, DIFFERENTIATE=differentiate,
        SIZE=gpu.next_power_of_2(classes), **gpu.settings("linear_cross_entropy", "softmax", classes),
    )  # fmt: skip
    return losses


def shipped() -> dict[str, Callable[[], object]]:
    """A tokenizer's 8192 classes, ImageNet's 1000 with class numbers and with mixed weights, 133 of COCO."""
    from omnitrunk.kernels.linear_cross_entropy import chunked

    def run(rows: int, width: int, classes: int, mixed: bool) -> None:
        target = gpu.example(rows, classes, dtype=torch.float32) if mixed else gpu.example(rows, dtype=torch.int64)
        chunked.linear_cross_entropy(
            gpu.example(rows, width), gpu.example(classes, width), gpu.example(classes), target, 0.1, -100,
            softmax=softmax_gradient,
        ).backward()  # fmt: skip

    return {
        "2048 x 768, 8192 classes": lambda: run(2048, 768, 8192, False),
        "1024 x 768, 1000 classes": lambda: run(1024, 768, 1000, False),
        "1024 x 768, 1000 classes, mixed": lambda: run(1024, 768, 1000, True),
        "2048 x 256, 133 classes": lambda: run(2048, 256, 133, False),
    }
