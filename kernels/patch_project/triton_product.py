"""patch_project as one product: bytes of picked patches go from memory through registers into the tensor cores.

A small kernel first finds out where every patch begins, so that the loop of the product adds two 32-bit numbers per
line; it would spill its registers if it had to work that out. Bias and positions are added in the epilogue.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.library import operator
from omnitrunk.kernels.mlp.triton_products import halves, place_of_tile
from omnitrunk.kernels.patch_project.triton_fold import UNIT
from omnitrunk.kernels.patches.grid import alignment_of, grid_of, is_dense
from omnitrunk.kernels.patches.triton_gather import patch_origin, within_patch


@triton.jit
def locate_kernel(
    index, origin, place, patches, total, sample_stride, frame_stride, row_stride, pixel_stride,
    SHAPE: tl.constexpr, GRID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    patch = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    start, cell, exists = patch_origin(
        index, patch, patches, total, sample_stride, frame_stride, row_stride, pixel_stride, SHAPE, GRID
    )
    tl.store(origin + patch, start.to(origin.dtype.element_ty), mask=patch < patches)
    tl.store(place + patch, tl.where(exists, cell, -1), mask=patch < patches)


@triton.jit
def store_columns(
    total, constant, position, place, out, rows, columns, stride,
    HAS_POSITION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # Bias, positions and stores of the first COLUMNS columns from where the pointers begin.
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    total += tl.load(constant + column, mask=column < columns, other=0.0)[None, :]
    if HAS_POSITION:
        added = position + (place[:, None] * stride + column[None, :])
        total += tl.load(added, mask=inside & (place >= 0)[:, None], other=0.0).to(tl.float32)
    # An index outside of the images must not read foreign memory; NaN makes it known.
    total = tl.where((place >= 0)[:, None], total, float("nan"))
    tl.store(out + (row[:, None] * stride + column[None, :]), total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def project_kernel(
    pixels, origin, place, weight, constant, position, out, rows, columns, depth,
    frame_stride, row_stride, pixel_stride, channel_stride,
    SHAPE: tl.constexpr, IS_DENSE: tl.constexpr, ALIGNMENT: tl.constexpr, UNIT: tl.constexpr,
    HAS_POSITION: tl.constexpr, EVEN_DEPTH: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row_block, column_block = place_of_tile(rows, columns, ROWS, COLUMNS, GROUP)
    first, left = row_block.to(tl.int64) * ROWS, column_block.to(tl.int64) * COLUMNS
    # From here on offsets are within the tile, and 32 bits hold them.
    rows, stride, columns = tl.minimum(rows - first, ROWS).to(tl.int32), columns, (columns - left).to(tl.int32)
    row, column, step = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    # What lies beyond the last row and column reads what is there, again: masks in the loop would cost more.
    start = tl.load(origin + first + row, mask=row < rows, other=0)
    if IS_DENSE:
        start = tl.multiple_of(start, ALIGNMENT)
    weight_row = weight + (left * depth + tl.minimum(column, columns - 1)[None, :] * depth)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for done in tl.range(0, depth, DEPTH):
        value = done + step
        if EVEN_DEPTH:
            b = tl.load(weight_row + value[:, None])
        else:
            b = tl.load(weight_row + value[:, None], mask=(value < depth)[:, None], other=0.0)
            value = tl.where(value < depth, value, 0)
        offset = within_patch(value, frame_stride, row_stride, pixel_stride, channel_stride, SHAPE, IS_DENSE, ALIGNMENT)
        a = tl.load(pixels + (start[:, None] + offset[None, :]))
        if UNIT > 1:
            # Bytes minus 128 by way of the bits of 2^23 + x: conversions of integers run at an eighth of the rate.
            a = (a.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0
        total = tl.dot(a.to(weight.dtype.element_ty), b, total, input_precision=PRECISION)
    total *= 1 / UNIT
    cell = tl.load(place + first + row, mask=row < rows, other=0)
    HALF: tl.constexpr = COLUMNS // 2
    constant, position, out = constant + left, position + left, out + (first * stride + left)
    one, other = halves(total)
    store_columns(one, constant, position, cell, out, rows, columns, stride, HAS_POSITION, ROWS, HALF)
    store_columns(
        other, constant + HALF, position + HALF, cell, out + HALF, rows, columns - HALF, stride,
        HAS_POSITION, ROWS, HALF,
    )  # fmt: skip


@operator()
def locate_patches(clips: Tensor, index: Tensor, shape: list[int]) -> tuple[Tensor, Tensor]:
    """Where the patches at index int64 (M,) of clips (B, T, H, W, C) begin, and their places in the grid.

    Beginnings count elements, in int32 where that holds them all, otherwise int64. Places are int32, -1 for an index
    outside of [0, B * n), which begins at 0.
    """
    extent = 1 + sum((size - 1) * stride for size, stride in zip(clips.shape, clips.stride(), strict=True))
    times, down, across = grid_of(clips, shape)
    total = len(clips) * times * down * across
    assert total < 2**31, f"{total} patches are more than 32 bits can number"
    origin = gpu.new((len(index),), torch.int32 if extent <= 2**31 else torch.int64, clips.device)
    place = gpu.new((len(index),), torch.int32, clips.device)
    settings = gpu.settings("patch_project", "locate", len(index))
    gpu.launch(
        locate_kernel, (triton.cdiv(len(index), settings["BLOCK"]),),
        index.contiguous(), origin, place, len(index), total, *clips.stride()[:4],
        SHAPE=tuple(shape), GRID=(times, down, across), **settings,
    )  # fmt: skip
    return origin, place


@operator()
def project_patches(
    clips: Tensor, origin: Tensor, place: Tensor, weight: Tensor, constant: Tensor, position: Tensor | None,
    shape: list[int], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Patches of clips (B, T, H, W, C) times weight (D, P), plus constant float32 (D,) and position (n, D) -> (M, D).

    For bytes, weight and constant are those of `fold`; origin and place (M,) are those of `locate_patches`. There must
    be at least one pixel. `dtype` is that of the result.
    """
    rows, (columns, depth) = len(origin), weight.shape
    out = gpu.new((rows, columns), dtype, clips.device)
    settings = gpu.settings("patch_project", "project", rows)
    tiles = triton.cdiv(rows, settings["ROWS"]) * triton.cdiv(columns, settings["COLUMNS"])
    gpu.launch(
        project_kernel, (tiles,),
        clips, origin, place, weight, constant, constant if position is None else position, out,
        rows, columns, depth, *clips.stride()[1:],
        SHAPE=(*shape, clips.shape[4]), IS_DENSE=is_dense(clips), ALIGNMENT=alignment_of(clips, shape),
        UNIT=UNIT if clips.dtype == torch.uint8 else 1, HAS_POSITION=position is not None,
        EVEN_DEPTH=depth % settings["DEPTH"] == 0, PRECISION="ieee" if weight.dtype == torch.float32 else "tf32",
        **settings,
    )  # fmt: skip
    return out
