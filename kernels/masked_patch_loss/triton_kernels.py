"""masked_patch_loss on GPUs: the gradient is written along with the loss, in the one pass over the predictions.

The backward pass multiplies that gradient in place by the gradient of the loss, read from the device; where that is
exactly 1, nothing is moved. float16 cannot hold weight / P next to 1, and losses are scaled up against that, so there
these factors are left to the backward pass, which multiplies by all of them at once in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.library import operator
from omnitrunk.kernels.masked_patch_loss import SPENT, STANDARDIZE_EPS
from omnitrunk.kernels.masked_patch_loss.triton_classes import class_loss
from omnitrunk.kernels.masked_patch_loss.triton_pixels import pixel_loss
from omnitrunk.kernels.patches import affine, channel_statistics


@triton.jit
def scale_kernel(gradient, above, weight, elements, values, divisor, IS_DEFERRED: tl.constexpr, BLOCK: tl.constexpr):
    factor = tl.load(above).to(tl.float32)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    entry = tl.arange(0, BLOCK)
    inside = first + entry < elements
    here = gradient + first + entry
    if IS_DEFERRED:
        row = first // values + ((first % values).to(tl.int32) + entry) // values
        factors = factor * (tl.load(weight + row, mask=inside, other=0.0).to(tl.float32) / divisor)
        scaled = tl.load(here, mask=inside).to(tl.float32) * factors
        tl.store(here, scaled.to(gradient.dtype.element_ty), mask=inside)
    elif factor != 1.0:
        scaled = tl.load(here, mask=inside).to(tl.float32) * factor
        tl.store(here, scaled.to(gradient.dtype.element_ty), mask=inside)


@operator(mutates=("gradient",))
def scale_gradient_(gradient: Tensor, above: Tensor, weight: Tensor | None, divisor: int) -> None:
    """Multiply gradient (M, P) in place by `above` (), and where a weight (M,) is given, by weight / divisor."""
    settings = gpu.settings("masked_patch_loss", "scale", 0)
    gpu.launch(
        scale_kernel, (triton.cdiv(gradient.numel(), settings["BLOCK"]),),
        gradient, above, weight, gradient.numel(), gradient.shape[1], divisor,
        IS_DEFERRED=weight is not None, **settings,
    )  # fmt: skip


class _MaskedPatchLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, index: Tensor, weight: Tensor, options: tuple) -> Tensor:
        loss, ctx.gradient = evaluate(pred, target, index, weight, options, differentiate=True)
        ctx.save_for_backward(weight)
        ctx.divisor = options[0] ** 2 if options[1] == "cross_entropy" else pred.shape[1]
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradient is None:
            raise RuntimeError(SPENT)
        gradient, ctx.gradient = ctx.gradient, None
        (weight,) = ctx.saved_tensors
        scale_gradient_(gradient, grad, weight if gradient.dtype == torch.float16 else None, ctx.divisor)
        return gradient, None, None, None, None


def evaluate(
    pred: Tensor, target: Tensor, index: Tensor, weight: Tensor, options: tuple, *, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """Loss () and gradient of pred, the gradient without rows unless asked for, and deferred in float16."""
    patch, loss, standardize, mean, std, label_smoothing, ignore_index = options
    deferred = pred.dtype == torch.float16
    if loss == "cross_entropy":
        return class_loss(
            pred, target, index, weight, patch, label_smoothing, ignore_index, differentiate, deferred
        )  # fmt: skip
    # Pixels that are floating come normalized.
    scale, shift = ([], []) if target.is_floating_point() else affine(*channel_statistics(target, mean, std))
    return pixel_loss(
        pred, target, index, weight, patch, loss == "l1", standardize, STANDARDIZE_EPS, scale, shift,
        differentiate, deferred,
    )  # fmt: skip


def masked_patch_loss(pred: Tensor, target: Tensor, index: Tensor, weight: Tensor, *options: Any) -> Tensor:
    """The operation; see omnitrunk.kernels.masked_patch_loss."""
    given = pred.contiguous(), target.detach(), index.contiguous(), weight.detach().contiguous()
    if pred.requires_grad and torch.is_grad_enabled():
        return _MaskedPatchLoss.apply(*given, options)
    return evaluate(*given, options, differentiate=False)[0]


def shipped() -> dict[str, Callable[[], object]]:
    """MAE's loss at a batch of 1,024 images, and the others of MultiMAE at 512."""

    def run(patches: int, values: int, target: Tensor, *options: Any, train: bool = True) -> None:
        index, weight = gpu.example(patches, dtype=torch.int64), gpu.example(patches, dtype=torch.float32)
        pred = gpu.example(patches, values)
        with torch.set_grad_enabled(train):
            loss = masked_patch_loss(pred, target, index, weight, *options)
        if train:
            loss.backward()

    colors, nothing = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.0, -100), (None, None, 0.0, -100)
    images = gpu.example(1024, 224, 224, 3, dtype=torch.uint8)
    depth = gpu.example(512, 224, 224, 1, dtype=torch.float32)
    classes = gpu.example(512, 56, 56, dtype=torch.uint8)
    return {
        "RGB, standardized": lambda: run(1024 * 147, 768, images, 16, "mse", True, *colors),
        "RGB, evaluation": lambda: run(1024 * 147, 768, images, 16, "mse", True, *colors, train=False),
        "depth": lambda: run(512 * 163, 256, depth, 16, "l1", False, *nothing),
        "133 classes": lambda: run(512 * 163, 2128, classes, 4, "cross_entropy", False, *nothing),
    }
