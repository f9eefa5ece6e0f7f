"""masked_patch_loss of class maps on GPUs: a few pixels per program, each with all its logits on chip."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.library import operator
from omnitrunk.kernels.patches.triton_gather import patch_origin

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def class_kernel(
    pred, target, index, weight, gradient, partial,
    patches, classes, total, image_stride, row_stride, pixel_stride, smoothing, ignored,
    GRID: tl.constexpr, PATCH: tl.constexpr, IS_SMOOTH: tl.constexpr, HAS_GRADIENT: tl.constexpr,
    IS_DEFERRED: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    patch, within = pixel // (PATCH * PATCH), pixel % (PATCH * PATCH)
    column = tl.arange(0, WIDTH)
    in_patch = patch < patches
    inside = in_patch[:, None] & (column < classes)[None, :]
    place = pixel.to(tl.int64)[:, None] * classes + column[None, :]
    logits = tl.load(pred + place, mask=inside, other=-float("inf")).to(tl.float32)
    start, _, exists = patch_origin(
        index, patch, patches, total, image_stride, 0, row_stride, pixel_stride, (1, PATCH, PATCH), GRID
    )
    offset = within // PATCH * row_stride + within % PATCH * pixel_stride
    label = tl.load(target + start + offset, mask=in_patch & exists, other=0)
    # A class that there is not, or a patch that there is not, is an error of the caller; NaN makes it known.
    is_class, counts = (label >= 0) & (label < classes) & exists, in_patch & (label != ignored)
    wanted = label.to(tl.int32)
    highest = tl.max(logits, 1)
    power = tl.exp2((logits - highest[:, None]) * LOG2_E)
    powers = tl.sum(power, 1)
    chosen = tl.load(pred + pixel.to(tl.int64) * classes + wanted, mask=in_patch & is_class, other=float("nan"))
    error = tl.log(powers) + highest - (1 - smoothing) * chosen.to(tl.float32)
    if IS_SMOOTH:
        error -= smoothing * (tl.sum(tl.where(inside, logits, 0.0), 1) / classes)
    share = tl.load(weight + patch, mask=in_patch, other=0.0).to(tl.float32) / (PATCH * PATCH)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(counts, error * share, 0.0), 0))
    if HAS_GRADIENT:
        share = tl.where(counts, 1.0 if IS_DEFERRED else share, 0.0)
        slope = power * (share / powers)[:, None]
        if IS_SMOOTH:
            slope -= (share * (smoothing / classes))[:, None]
        slope -= tl.where(column[None, :] == wanted[:, None], ((1 - smoothing) * share)[:, None], 0.0)
        tl.store(gradient + place, slope.to(gradient.dtype.element_ty), mask=inside)


@operator()
def class_loss(
    pred: Tensor, target: Tensor, index: Tensor, weight: Tensor, patch: int,
    label_smoothing: float, ignore_index: int, differentiate: bool, deferred: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Cross-entropy float32 () and gradient of pred (M, p * p * K; no rows unless asked for).

    pred, index and weight contiguous, target (B, h, w) of any strides and integer dtype. A `deferred` gradient lacks
    the factor weight / (p * p).
    """
    patches, values = pred.shape
    classes = values // (patch * patch)
    images, height, width = target.shape
    grid = (1, height // patch, width // patch)
    settings = gpu.settings("masked_patch_loss", "class", classes)
    programs = triton.cdiv(patches * patch * patch, settings["PIXELS"])
    gradient = gpu.new((patches if differentiate else 0, values), pred.dtype, pred.device)
    partial = gpu.new((programs,), torch.float32, pred.device)
    gpu.launch(
        class_kernel, (programs,),
        pred, target, index, weight, gradient, partial,
        patches, classes, images * math.prod(grid), *target.stride(), label_smoothing, ignore_index,
        GRID=grid, PATCH=patch, IS_SMOOTH=label_smoothing != 0, HAS_GRADIENT=differentiate,
        IS_DEFERRED=deferred, WIDTH=gpu.next_power_of_2(classes), **settings,
    )  # fmt: skip
    return partial.sum(), gradient
