"""gather_patches: picked patches of channels-last images, as rows.

Patch i of image b, row-major among the n = (H / p)(W / p) patches of an image, has the index b * n + i. Its row holds
p * p * C values in (row, column, channel) order:

    rows[m] = (pixels[patch index[m]] / 255 - mean) / std     for bytes
    rows[m] =  pixels[patch index[m]]                         for floating pixels, which come normalized

pixels (B, H, W, C), index int64 (M,), mean and std (C,) -> rows (M, p * p * C). Only the picked patches are read: with
three quarters masked, the rest of the image costs nothing. No gradient reaches the pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from omnitrunk.kernels import native
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation


def cost(rows: int, values: int, *, bytes_per_value: int = 1, bytes_per_element: int = 4) -> Cost:
    """Least work for `rows` patches of `values` values: one read as stored, one write, a multiply-add per value."""
    return Cost(bytes=rows * values * (bytes_per_value + bytes_per_element), flop=2 * rows * values)


def copy_reference(pixels: Tensor, index: Tensor, patch: int) -> Tensor:
    """The definition of `copy_patches`."""
    down, across = pixels.shape[1] // patch, pixels.shape[2] // patch
    tiles = pixels.unflatten(2, (across, patch)).unflatten(1, (down, patch))
    image, cell = index // (down * across), index % (down * across)
    # Splitting an axis is a view, so that this reads the picked patches only, whatever the strides of the pixels.
    picked = tiles[image, cell // across, :, cell % across]
    return picked.reshape(len(index), patch * patch * pixels.shape[3])


def reference(
    pixels: Tensor,
    index: Tensor,
    patch: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype,
) -> Tensor:
    """The definition for bytes; see the module's text for the formula."""
    rows = copy_reference(pixels, index, patch).to(dtype).unflatten(1, (patch * patch, pixels.shape[3]))
    center, deviation = _channel_values(mean, dtype, pixels.device), _channel_values(std, dtype, pixels.device)
    return rows.div_(255).sub_(center).div_(deviation).flatten(1)


COPY = Operation("copy_patches", copy_reference)
OPERATION = Operation("gather_patches", reference)


@functools.lru_cache(maxsize=64)
def _channel_values(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # Kept, because a copy of three numbers to a GPU costs more than the arithmetic.
    return torch.tensor(values, dtype=dtype, device=device)


def _copy_refuses(pixels: Tensor, index: Tensor, *_others: object) -> str | None:
    if not (pixels.is_contiguous() and index.is_contiguous()):
        return "pixels and index must be contiguous"
    return None


def _refuses(pixels: Tensor, index: Tensor, *others: object) -> str | None:
    if others[-1] != torch.float32:
        return f"writes float32, not {others[-1]}"
    return _copy_refuses(pixels, index)


@COPY.backend(
    "cpu",
    devices=("cpu",),
    why="copies whole runs of pixels",
    missing=native.missing_reason,
    refuses=_copy_refuses,
)
def _copy_cpu(pixels: Tensor, index: Tensor, patch: int) -> Tensor:
    return native.copy_patches(pixels, index, patch)


@OPERATION.backend(
    "cpu",
    devices=("cpu",),
    why="reads bytes and writes normalized values in one pass",
    missing=native.missing_reason,
    refuses=_refuses,
)
def _cpu(
    pixels: Tensor,
    index: Tensor,
    patch: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    _dtype: torch.dtype,
) -> Tensor:
    return native.gather_patches(pixels, index, patch, mean=mean, std=std)


def copy_patches(pixels: Tensor, index: Tensor, patch: int, *, backend: str = "auto") -> Tensor:
    """Pick patches as they are stored, for class maps and for pixels that are already normalized.

    pixels (B, H, W, C) of any dtype, index int64 (M,) -> (M, patch * patch * C) of that dtype. Raises ValueError where
    the patch does not divide the image, IndexError on the CPU where an index is outside of [0, B * n).
    """
    _check(pixels, index, patch)
    return COPY.run(backend, pixels.detach(), index, patch)


def gather_patches(
    pixels: Tensor,
    index: Tensor,
    patch: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Pick patches and normalize them: bytes become (x / 255 - mean) / std, floating pixels are taken as they are.

    pixels uint8 or floating (B, H, W, C), index int64 (M,), `mean` and `std` one value per channel (0 and 1 when left
    out) in units of the full range -> (M, patch * patch * C) of `dtype`. Errors are those of `copy_patches`, which
    also serves other integers.
    """
    if pixels.is_floating_point():
        return copy_patches(pixels, index, patch, backend=backend).to(dtype)
    _check(pixels, index, patch)
    if pixels.dtype != torch.uint8:
        raise ValueError(f"gather_patches normalizes bytes, not {pixels.dtype}; copy_patches takes any dtype")
    channels = pixels.shape[3]
    mean = (0.0,) * channels if mean is None else tuple(mean)
    std = (1.0,) * channels if std is None else tuple(std)
    if not len(mean) == len(std) == channels:
        raise ValueError(f"gather_patches: pixels have {channels} channels, mean {len(mean)} and std {len(std)} values")
    return OPERATION.run(backend, pixels, index, patch, mean, std, dtype)


def _check(pixels: Tensor, index: Tensor, patch: int) -> None:
    if pixels.dim() != 4 or pixels.shape[1] % patch or pixels.shape[2] % patch:
        raise ValueError(f"pixels must be (B, H, W, C) with H and W multiples of {patch}, not {tuple(pixels.shape)}")
    if index.dtype != torch.int64 or index.dim() != 1:
        raise ValueError(f"a patch index must be int64 of shape (M,), not {index.dtype} of {tuple(index.shape)}")
