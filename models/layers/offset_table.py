"""Tables of biases by relative position, (offsets, heads), on their way to a window of another height and width.

Tokens of a window (t, h, w) have (2 t - 1) (2 h - 1) (2 w - 1) offsets to each other, rows of the table in that order.
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from omnitrunk.models.layers.positions import interpolate
from omnitrunk.models.layers.window_block import Triple


def square_side(offsets: int, frames: int) -> int | None:
    """Height and width of the square window of so many frames that has so many offsets; None where there is none."""
    times = 2 * frames - 1
    side = isqrt(offsets // times)
    return (side + 1) // 2 if offsets == times * side**2 and side % 2 else None


def resized_offsets(table: Tensor, window: Triple) -> Tensor:
    """A table of a square window resampled for a `window` (t, h, w) of as many frames, in float32 or wider.

    The grid of every temporal offset is resampled by itself, bicubic, corners not aligned (Liu et al. 2021, released
    code). ValueError where no square window of t frames has such a table.
    """
    side = square_side(len(table), window[0])
    if side is None:
        raise ValueError(
            f"a table of {len(table)} offsets is of no square window of {window[0]} frames: keep the window's frames"
        )
    (times, rows, columns), old, heads = (2 * extent - 1 for extent in window), 2 * side - 1, table.shape[1]
    grids = table.view(times, old**2, heads).transpose(0, 1).flatten(1)
    wide = grids.to(torch.promote_types(grids.dtype, torch.float32))
    resized = interpolate(wide, (old, old), (rows, columns), "bicubic").to(table.dtype)
    return resized.view(rows * columns, times, heads).transpose(0, 1).reshape(-1, heads)
