"""gather_patches on GPUs: tiles of picked patches, read as wide as their lines allow, written in 16-byte lanes.

The pixels of a line of a patch are neighbours in memory, those of two lines are not; wide accesses are possible because
offsets are computed in 32 bits, once for all rows of a tile, and the compiler is told what divides them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.gather_tokens.triton_kernels import tile_of, tiles
from omnitrunk.kernels.library import operator
from omnitrunk.kernels.patches.grid import alignment_of, grid_of, is_dense, values_of


@triton.jit
def patch_origin(
    index, patch, patches, total, sample_stride, frame_stride, row_stride, pixel_stride,
    SHAPE: tl.constexpr, GRID: tl.constexpr,
):  # fmt: skip
    """Where the patches index[patch] begin, int64, their places in the grid of a sample, and whether they exist."""
    number = tl.load(index + patch, mask=patch < patches, other=0)
    exists = (number >= 0) & (number < total)
    # Divisions in 32 bits and by constants, because others would take longer than moving the patch.
    number = tl.where(exists, number, 0).to(tl.int32)
    place = number % (GRID[0] * GRID[1] * GRID[2])
    time, row, column = place // (GRID[1] * GRID[2]), place // GRID[2] % GRID[1], place % GRID[2]
    origin = (number // (GRID[0] * GRID[1] * GRID[2])).to(tl.int64) * sample_stride
    origin += time.to(tl.int64) * (SHAPE[0] * frame_stride)
    return origin + row * (SHAPE[1] * row_stride) + column * (SHAPE[2] * pixel_stride), place, exists


@triton.jit
def within_patch(
    value, frame_stride, row_stride, pixel_stride, channel_stride,
    SHAPE: tl.constexpr, IS_DENSE: tl.constexpr, ALIGNMENT: tl.constexpr,
):  # fmt: skip
    """How far the values of a patch lie from its origin; `value` counts them in (time, row, column, channel) order."""
    RUN: tl.constexpr = SHAPE[2] * SHAPE[3]
    line = value // RUN
    offset = line // SHAPE[1] * frame_stride + line % SHAPE[1] * row_stride if SHAPE[0] > 1 else line * row_stride
    if IS_DENSE:
        offset += value % RUN
        return tl.max_contiguous(tl.multiple_of(offset, ALIGNMENT), ALIGNMENT)
    return offset + value % RUN // SHAPE[3] * pixel_stride + value % SHAPE[3] * channel_stride


@triton.jit
def of_channel(value, VALUES: tl.constexpr):
    """The constant of every value's channel, from one for all channels or one for each."""
    found = tl.full(value.shape, VALUES[0], tl.float32)
    for channel in tl.static_range(1, len(VALUES)):
        found = tl.where(value % len(VALUES) == channel, VALUES[channel], found)
    return found


@triton.jit
def gather_kernel(
    pixels, index, out, patches, total, sample_stride, frame_stride, row_stride, pixel_stride, channel_stride,
    SHAPE: tl.constexpr, GRID: tl.constexpr, IS_DENSE: tl.constexpr, ALIGNMENT: tl.constexpr,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    VALUES: tl.constexpr = SHAPE[0] * SHAPE[1] * SHAPE[2] * SHAPE[3]
    row, column, inside = tile_of(tl.program_id(0), patches, VALUES, ROWS, BLOCK)
    origin, _, exists = patch_origin(
        index, row, patches, total, sample_stride, frame_stride, row_stride, pixel_stride, SHAPE, GRID
    )
    if IS_DENSE:
        origin = tl.multiple_of(origin, ALIGNMENT)
    offset = within_patch(column, frame_stride, row_stride, pixel_stride, channel_stride, SHAPE, IS_DENSE, ALIGNMENT)
    value = tl.load(pixels + (origin[:, None] + offset[None, :]), mask=inside & exists[:, None], other=0)
    if len(SCALE) > 0:
        scale, shift = of_channel(column[None, :], SCALE), of_channel(column[None, :], SHIFT)
        value = value.to(tl.float32) * scale + shift
    if out.dtype.element_ty.is_floating():
        # An index outside of the images must not read foreign memory; NaN makes it known.
        value = tl.where(exists[:, None], value, float("nan"))
    tl.store(out + row.to(tl.int64)[:, None] * VALUES + column[None, :], value.to(out.dtype.element_ty), mask=inside)


@operator()
def gather_rows(
    clips: Tensor, index: Tensor, shape: list[int], dtype: torch.dtype, scale: list[float], shift: list[float]
) -> Tensor:
    """Patches of clips (B, T, H, W, C) of any strides at index int64 (M,), as x * scale + shift -> (M, P) of `dtype`.

    `shape` is (frames, rows, columns); scale and shift have one value for each channel, one for all, or none to copy.
    A row whose index is outside of [0, B * n) becomes NaN, 0 in integers.
    """
    rows, values = len(index), values_of(clips, shape)
    times, down, across = grid_of(clips, shape)
    total = len(clips) * times * down * across
    assert total < 2**31, f"{total} patches are more than 32 bits can number"
    out = gpu.new((rows, values), dtype, clips.device)
    settings = gpu.settings("patches", "gather", values)
    # As many neighbours as 16 bytes hold on the wider side, so that the threads that read are those that write.
    most = max(1, 16 // max(dtype.itemsize, clips.itemsize))
    gpu.launch(
        gather_kernel, (tiles(rows, values, settings),),
        clips, index.contiguous(), out, rows, total, *clips.stride(),
        SHAPE=(*shape, clips.shape[4]), GRID=(times, down, across),
        IS_DENSE=is_dense(clips), ALIGNMENT=alignment_of(clips, shape, most),
        SCALE=tuple(scale), SHIFT=tuple(shift), **settings,
    )  # fmt: skip
    return out


def shipped() -> dict[str, Callable[[], object]]:
    """The visible patches of ViT-B and VideoMAE in normalized bfloat16, depth as it is stored, and a class map."""

    def run(clips: tuple[int, ...], rows: int, shape: list[int], dtype: torch.dtype, scale: list[float]) -> None:
        written = torch.bfloat16 if scale else dtype
        pixels, index = gpu.example(*clips, dtype=dtype), gpu.example(rows, dtype=torch.int64)
        gather_rows(pixels, index, shape, written, scale, scale)

    third = [0.25, 0.5, 0.125]
    return {
        "RGB, 49 of 196": lambda: run((256, 1, 224, 224, 3), 256 * 49, [1, 16, 16], torch.uint8, third),
        "video, 160 of 1568": lambda: run((128, 16, 224, 224, 3), 128 * 160, [2, 16, 16], torch.uint8, third),
        "depth in float32": lambda: run((256, 1, 224, 224, 1), 256 * 49, [1, 16, 16], torch.float32, []),
        "classes": lambda: run((256, 1, 56, 56, 1), 256 * 49, [1, 4, 4], torch.uint8, []),
    }
