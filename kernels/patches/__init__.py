"""gather_patches: picked patches of channels-last images and clips, as rows.

A patch is t frames of p rows of q columns; images have one frame. Patches are numbered row-major over (time, row,
column), n = (T / t)(H / p)(W / q) of them in a sample, and patch i of sample b has the index b * n + i. Its row holds
t * p * q * C values in (time, row, column, channel) order:

    rows[m] = (pixels[patch index[m]] / 255 - mean) / std     for bytes
    rows[m] =  pixels[patch index[m]]                         for floating pixels, which come normalized

pixels (B, H, W, C) or (B, T, H, W, C), index int64 (M,), mean and std (C,) -> rows (M, t * p * q * C). Only the picked
patches are read: with three quarters masked, the rest of the image costs nothing. No gradient reaches the pixels.
Sources: Dosovitskiy et al. 2021, section 3.1 (patches); Tong et al. 2022 (VideoMAE), section 3.1 (of several frames).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omnitrunk.kernels import gpu, native
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.patches.grid import Patch, Shape, as_clips, cut_into_squares, grid_of, values_of


def cost(rows: int, values: int, *, bytes_per_value: int = 1, bytes_per_element: int = 4) -> Cost:
    """Least work for `rows` patches of `values` values: one read as stored, one write, a multiply-add per value."""
    return Cost(bytes=rows * values * (bytes_per_value + bytes_per_element), flop=2 * rows * values)


def copy_reference(clips: Tensor, index: Tensor, shape: Shape) -> Tensor:
    """The definition of `copy_patches`, on clips (B, T, H, W, C) and patches of (frames, rows, columns)."""
    times, down, across = grid_of(clips, shape)
    tiles = clips.unflatten(3, (across, shape[2])).unflatten(2, (down, shape[1])).unflatten(1, (times, shape[0]))
    time, row, column = index // (down * across), index // across % down, index % across
    # Splitting an axis is a view, so that this reads the picked patches only, whatever the strides of the pixels.
    picked = tiles[time // times, time % times, :, row, :, column]
    return picked.reshape(len(index), values_of(clips, shape))


def reference(
    clips: Tensor,
    index: Tensor,
    shape: Shape,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype,
) -> Tensor:
    """The definition for bytes; see the module's text for the formula."""
    rows = copy_reference(clips, index, shape).to(dtype).unflatten(1, (-1, clips.shape[4]))
    center, deviation = _channel_values(mean, dtype, clips.device), _channel_values(std, dtype, clips.device)
    return rows.div_(255).sub_(center).div_(deviation).flatten(1)


COPY = Operation("copy_patches", copy_reference)
OPERATION = Operation("gather_patches", reference)


@functools.lru_cache(maxsize=64)
def _channel_values(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # Kept, because a copy of three numbers to a GPU costs more than the arithmetic.
    return torch.tensor(values, dtype=dtype, device=device)


def affine(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """Scale and shift of every channel that normalize a byte x as x * scale + shift."""
    scale = [1 / (255 * deviation) for deviation in std]
    return scale, [-center / deviation for center, deviation in zip(mean, std, strict=True)]


def _triton_refuses(clips: Tensor, index: Tensor, shape: Shape, *others: Any) -> str | None:
    written = others[-1] if others else clips.dtype
    for dtype in (clips.dtype, written):
        if dtype == torch.bool or dtype.is_complex:
            return f"moves numbers, not {dtype}"
    return "computes in float32" if others and written == torch.float64 else None


@COPY.backend(
    "triton",
    devices=gpu.DEVICES,
    why="reads the picked patches once, whatever their strides",
    missing=gpu.missing,
    refuses=_triton_refuses,
)
def _copy_triton(clips: Tensor, index: Tensor, shape: Shape) -> Tensor:
    from omnitrunk.kernels.patches import triton_gather

    return triton_gather.gather_rows(clips, index, list(shape), clips.dtype, [], [])


@OPERATION.backend(
    "triton",
    devices=gpu.DEVICES,
    why="reads bytes and writes normalized values in one pass",
    missing=gpu.missing,
    refuses=_triton_refuses,
)
def _triton(
    clips: Tensor, index: Tensor, shape: Shape, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> Tensor:
    from omnitrunk.kernels.patches import triton_gather

    return triton_gather.gather_rows(clips, index, list(shape), dtype, *affine(mean, std))


def _copy_refuses(clips: Tensor, index: Tensor, *_others: Any) -> str | None:
    if not (clips.is_contiguous() and index.is_contiguous()):
        return "pixels and index must be contiguous"
    return None


def _refuses(clips: Tensor, index: Tensor, *others: Any) -> str | None:
    if others[-1] != torch.float32:
        return f"writes float32, not {others[-1]}"
    return _copy_refuses(clips, index)


@COPY.backend(
    "cpu",
    devices=("cpu",),
    why="copies whole runs of pixels",
    missing=native.missing_reason,
    refuses=_copy_refuses,
)
def _copy_cpu(clips: Tensor, index: Tensor, shape: Shape) -> Tensor:
    rows = native.copy_patches(*cut_into_squares(clips, index, shape))
    return rows.view(len(index), values_of(clips, shape))


@OPERATION.backend(
    "cpu",
    devices=("cpu",),
    why="reads bytes and writes normalized values in one pass",
    missing=native.missing_reason,
    refuses=_refuses,
)
def _cpu(
    clips: Tensor, index: Tensor, shape: Shape, mean: tuple[float, ...], std: tuple[float, ...], _dtype: torch.dtype
) -> Tensor:
    images, squares, side = cut_into_squares(clips, index, shape)
    repeats = images.shape[3] // clips.shape[4]
    rows = native.gather_patches(images, squares, side, mean=mean * repeats, std=std * repeats)
    return rows.view(len(index), values_of(clips, shape))


def copy_patches(pixels: Tensor, index: Tensor, patch: Patch, *, backend: str = "auto") -> Tensor:
    """Pick patches as they are stored, for class maps and for pixels that are already normalized.

    pixels (B, H, W, C) or (B, T, H, W, C) of any dtype, index int64 (M,), `patch` the side of a square, (rows,
    columns) or (frames, rows, columns) -> (M, P) of that dtype. Raises ValueError where patches do not tile the pixels,
    IndexError on the CPU where an index is outside of [0, B * n); the Triton backend, which cannot raise without
    waiting for the device, fills that row with NaN (0 in integers).
    """
    clips, shape = as_clips(pixels.detach(), patch)
    _check_index(index)
    return COPY.run(backend, clips, index, shape)


def gather_patches(
    pixels: Tensor,
    index: Tensor,
    patch: Patch,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Pick patches and normalize them: bytes become (x / 255 - mean) / std, floating pixels are taken as they are.

    pixels uint8 or floating, index and `patch` as in `copy_patches`, `mean` and `std` one value per channel (0 and 1
    when left out) in units of the full range -> (M, P) of `dtype`. Errors are those of `copy_patches`, which also
    serves other integers.
    """
    if pixels.is_floating_point():
        return copy_patches(pixels, index, patch, backend=backend).to(dtype)
    clips, shape = as_clips(pixels, patch)
    _check_index(index)
    if pixels.dtype != torch.uint8:
        raise ValueError(f"gather_patches normalizes bytes, not {pixels.dtype}; copy_patches takes any dtype")
    return OPERATION.run(backend, clips, index, shape, *channel_statistics(clips, mean, std), dtype)


def channel_statistics(
    clips: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every channel, 0 and 1 where left out; ValueError where their number is wrong."""
    channels = clips.shape[-1]
    mean = (0.0,) * channels if mean is None else tuple(mean)
    std = (1.0,) * channels if std is None else tuple(std)
    if not len(mean) == len(std) == channels:
        raise ValueError(f"gather_patches: pixels have {channels} channels, mean {len(mean)} and std {len(std)} values")
    return mean, std


def _check_index(index: Tensor) -> None:
    if index.dtype != torch.int64 or index.dim() != 1:
        raise ValueError(f"a patch index must be int64 of shape (M,), not {index.dtype} of {tuple(index.shape)}")
