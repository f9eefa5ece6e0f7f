"""masked_patch_loss of pixels on GPUs: a few masked patches per program, read, compared and differentiated at once."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.library import operator
from omnitrunk.kernels.patches.triton_gather import patch_origin


@triton.jit
def pixel_kernel(
    pred, target, index, weight, gradient, partial,
    patches, total, image_stride, row_stride, pixel_stride, channel_stride, eps,
    GRID: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr, IS_DENSE: tl.constexpr,
    SCALE: tl.constexpr, SHIFT: tl.constexpr,
    IS_ABSOLUTE: tl.constexpr, STANDARDIZE: tl.constexpr, HAS_GRADIENT: tl.constexpr, IS_DEFERRED: tl.constexpr,
    PATCHES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    VALUES: tl.constexpr = PATCH * PATCH * CHANNELS
    RUN: tl.constexpr = PATCH * CHANNELS
    patch = tl.program_id(0) * PATCHES + tl.arange(0, PATCHES)
    column = tl.arange(0, WIDTH)
    inside = (patch < patches)[:, None] & (column < VALUES)[None, :]
    place = patch.to(tl.int64)[:, None] * VALUES + column[None, :]
    predicted = tl.load(pred + place, mask=inside, other=0.0).to(tl.float32)
    start, _, exists = patch_origin(
        index, patch, patches, total, image_stride, 0, row_stride, pixel_stride, (1, PATCH, PATCH), GRID
    )
    if IS_DENSE:
        # The pixels of a row of the patch are neighbours in memory, which is what makes wide accesses possible.
        offset = column // RUN * row_stride + column % RUN
        if RUN % 8 == 0:
            # No more bytes at a time than predictions, so that the same threads hold both.
            offset = tl.max_contiguous(offset, 8)
    else:
        offset = column // RUN * row_stride + column % RUN // CHANNELS * pixel_stride
        offset += column % CHANNELS * channel_stride
    value = tl.load(target + start[:, None] + offset[None, :], mask=inside & exists[:, None], other=0).to(tl.float32)
    if len(SCALE) > 0:
        scale, shift = tl.zeros((WIDTH,), tl.float32), tl.zeros((WIDTH,), tl.float32)
        for channel in tl.static_range(CHANNELS):
            # Past the end of a patch both stay 0, and with them everything that is summed up below.
            of_channel = (column % CHANNELS == channel) & (column < VALUES)
            scale = tl.where(of_channel, SCALE[channel], scale)
            shift = tl.where(of_channel, SHIFT[channel], shift)
        value = value * scale[None, :] + shift[None, :]
    if STANDARDIZE:
        center = tl.sum(value, 1) / VALUES
        value = tl.where((column < VALUES)[None, :], value - center[:, None], 0.0)
        variance = tl.sum(value * value, 1) / (VALUES - 1)
        value = value * (1 / tl.sqrt(variance + eps))[:, None]
    difference = predicted - value
    share = tl.load(weight + patch, mask=patch < patches, other=0.0).to(tl.float32) / VALUES
    # An index outside of the images must not read foreign memory; NaN makes it known.
    share = tl.where(exists, share, float("nan"))
    if IS_ABSOLUTE:
        error = tl.sum(tl.abs(difference), 1)
        slope = (difference > 0).to(tl.float32) - (difference < 0).to(tl.float32)
    else:
        error = tl.sum(difference * difference, 1)
        slope = difference
    tl.store(partial + tl.program_id(0), tl.sum(error * share, 0))
    if HAS_GRADIENT:
        factor = 1.0 if IS_ABSOLUTE else 2.0
        slope = slope * (factor if IS_DEFERRED else (factor * share)[:, None])
        tl.store(gradient + place, slope.to(gradient.dtype.element_ty), mask=inside)


@operator()
def pixel_loss(
    pred: Tensor, target: Tensor, index: Tensor, weight: Tensor, patch: int,
    absolute: bool, standardize: bool, eps: float, scale: list[float], shift: list[float],
    differentiate: bool, deferred: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Loss float32 () and gradient of pred (M, P; no rows unless asked for), "mse" or, if `absolute`, "l1".

    pred, index and weight contiguous, target (B, H, W, C) of any strides; bytes x become x * scale + shift, with one
    value of each per channel. A `deferred` gradient lacks the factor weight / P.
    """
    patches, values = pred.shape
    images, height, width, channels = target.shape
    grid = (1, height // patch, width // patch)
    settings = gpu.settings("masked_patch_loss", "pixel", values)
    programs = triton.cdiv(patches, settings["PATCHES"])
    gradient = gpu.new((patches if differentiate else 0, values), pred.dtype, pred.device)
    partial = gpu.new((programs,), torch.float32, pred.device)
    dense = target.stride(2) == channels and (channels == 1 or target.stride(3) == 1)
    gpu.launch(
        pixel_kernel, (programs,),
        pred, target, index, weight, gradient, partial,
        patches, images * math.prod(grid), *target.stride(), eps,
        GRID=grid, PATCH=patch, CHANNELS=channels, IS_DENSE=dense,
        SCALE=tuple(scale), SHIFT=tuple(shift),
        IS_ABSOLUTE=absolute, STANDARDIZE=standardize, HAS_GRADIENT=differentiate, IS_DEFERRED=deferred,
        WIDTH=gpu.next_power_of_2(values), **settings,
    )  # fmt: skip
    return partial.sum(), gradient
