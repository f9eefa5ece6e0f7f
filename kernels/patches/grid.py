"""How patches tile images and clips, and how a patch is asked for.

A patch is t frames of p rows of q columns of pixels. Patches are numbered row-major over (time, row, column) of the
grid of (T / t, H / p, W / q) patches, n of them in a sample; patch i of sample b has the index b * n + i. Images are
clips of one frame.
"""

from __future__ import annotations

from math import gcd, prod

import torch
from torch import Tensor

Patch = int | tuple[int, int] | tuple[int, int, int]
"""The side of a square; rows and columns; or frames, rows and columns."""
Shape = tuple[int, int, int]


def shape_of(patch: Patch) -> Shape:
    """A patch as (frames, rows, columns)."""
    if isinstance(patch, int):
        return 1, patch, patch
    return (1, *patch) if len(patch) == 2 else tuple(patch)


def as_clips(pixels: Tensor, patch: Patch) -> tuple[Tensor, Shape]:
    """View images (B, H, W, C), or clips (B, T, H, W, C), as clips; returns them with (frames, rows, columns).

    Raises ValueError where patches do not tile the pixels, or clips are asked for patches of no given length.
    """
    shape = shape_of(patch)
    if pixels.dim() == 5 and (isinstance(patch, int) or len(patch) != 3):
        raise ValueError(f"patches of clips (B, T, H, W, C) are (frames, rows, columns), not {patch}")
    clips = pixels.unsqueeze(1) if pixels.dim() == 4 else pixels
    if (
        clips.dim() != 5
        or min(shape) < 1
        or any(size % side for size, side in zip(clips.shape[1:4], shape, strict=True))
    ):
        raise ValueError(
            f"pixels must be (B, H, W, C) or (B, T, H, W, C) with sides that are multiples of {patch}, "
            f"not {tuple(pixels.shape)}"
        )
    return clips, shape


def grid_of(clips: Tensor, shape: Shape) -> Shape:
    """Patches along time, down and across in every one of clips (B, T, H, W, C)."""
    _, frames, height, width, _ = clips.shape
    return frames // shape[0], height // shape[1], width // shape[2]


def values_of(clips: Tensor, shape: Shape) -> int:
    """P, the values of a patch."""
    return prod(shape) * clips.shape[4]


def is_dense(clips: Tensor) -> bool:
    """Whether the values of a line of pixels are neighbours in memory."""
    *_, pixel_stride, channel_stride = clips.stride()
    return pixel_stride == clips.shape[4] and (clips.shape[4] == 1 or channel_stride == 1)


def alignment_of(clips: Tensor, shape: Shape, most: int = 16) -> int:
    """The greatest power of 2, up to `most`, that divides the length of a line of a patch and all ways to the next."""
    return gcd(most, shape[2] * clips.shape[4], *clips.stride()[:3])


def cut_into_squares(clips: Tensor, index: Tensor, shape: Shape) -> tuple[Tensor, Tensor, int]:
    """The same patches as squares of images: images (R, h, w, c), index int64 (M * s,) and the side of a square.

    A patch becomes s squares, one after the other: its frames where those are square, otherwise its lines, each of them
    one pixel of q * C channels. Clips must be contiguous.
    """
    frames, rows, columns = shape
    batch, length, height, width, channels = clips.shape
    _, down, across = grid_of(clips, shape)
    if rows == columns:
        side, lines = rows, 1
        images = clips.view(batch * length, height, width, channels)
    else:
        side, lines = 1, rows
        images = clips.view(batch * length * height, 1, across, columns * channels)
    if frames * lines == 1:
        return images, index, side
    cell, column = index // across, index % across
    first = cell // down * (frames * down * lines) + cell % down * lines
    frame, line = torch.arange(frames) * (down * lines), torch.arange(lines)
    squares = first[:, None, None] + frame[:, None] + line
    return images, (squares * across + column[:, None, None]).flatten(), side
