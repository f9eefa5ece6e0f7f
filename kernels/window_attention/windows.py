"""Where shifted windows lie: which token stands where, which pairs are of one region, which bias a pair gets.

A feature map of size (T, H, W) is padded at its far ends to whole windows and shifted: place (t, h, w) of window
(i, j, k) holds the token at ((i, j, k) * window + (t, h, w) + shift) modulo the padded size. Nothing is moved for that:
everything here is an index. Windows and the tokens in them are numbered row by row, the last axis fastest.
Sources: Liu et al. 2021, section 3.2 (Swin); Liu et al. 2022, section 3.2 (Video Swin).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Triple = tuple[int, int, int]
MASKED = -100.0
"""What is added to the score of two tokens of different regions; not minus infinity, as in the released models."""


@dataclass(frozen=True)
class Windows:
    """How a feature map is cut.

    size: tokens along time, height and width; window and shift: as they apply, after clipping; table_window: the one
    that the table of biases is made for; bias_grid: the extent in which the tokens of a window are laid out when their
    biases are looked up, `window` where that is geometrically right.
    """

    size: Triple
    window: Triple
    shift: Triple
    table_window: Triple
    bias_grid: Triple

    @property
    def counts(self) -> Triple:
        """Windows along each axis."""
        return tuple(-(-size // window) for size, window in zip(self.size, self.window, strict=True))

    @property
    def number(self) -> int:
        """Windows of one sample."""
        return math.prod(self.counts)

    @property
    def tokens(self) -> int:
        """L, the tokens of a window, padding included."""
        return math.prod(self.window)

    @property
    def padded(self) -> bool:
        """Whether some tokens of the last windows are padding."""
        return any(size % window for size, window in zip(self.size, self.window, strict=True))

    @property
    def shifted(self) -> bool:
        """Whether the windows of some axis are shifted, so that border windows hold several regions."""
        return any(self.shift)

    @property
    def faithful(self) -> bool:
        """Whether biases are looked up as the released models do; see `cut`."""
        return self.bias_grid == self.table_window

    @property
    def table_rows(self) -> int:
        """Offsets between two tokens of the window that the table is made for."""
        return math.prod([2 * extent - 1 for extent in self.table_window])


def cut(size: Triple, window: Triple, shift: Triple, faithful: bool = True) -> Windows:
    """The windows of a feature map: an axis no longer than its window is one window, and is not shifted.

    faithful: where such a window is clipped in height or width, take the biases that the released Video Swin models
    were trained with: token n of the clipped window has the biases of token n of the whole one, which are those of
    other offsets. Otherwise every pair has the bias of its own offset.
    """
    clipped = tuple(min(extent, axis) for extent, axis in zip(window, size, strict=True))
    kept = tuple(0 if axis <= extent else by for by, extent, axis in zip(shift, window, size, strict=True))
    return Windows(size, clipped, kept, window, window if faithful else clipped)


def _grid(extents: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Coordinates of a box, row by row: (number of points, axes)."""
    axes = [torch.arange(extent, device=device) for extent in extents]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def index_map(windows: Windows, device: torch.device | None = None) -> Tensor:
    """The token of one sample at every place of every window, int64 (windows, L); T H W stands for padding."""
    extent, counts, size = (torch.tensor(x, device=device) for x in (windows.window, windows.counts, windows.size))
    corner = _grid(windows.counts, device) * extent + torch.tensor(windows.shift, device=device)
    place = (corner[:, None] + _grid(windows.window, device)) % (counts * extent)
    _, height, width = windows.size
    token = (place[..., 0] * height + place[..., 1]) * width + place[..., 2]
    return torch.where((place < size).all(-1), token, math.prod(windows.size))


def inverse_map(index: Tensor, tokens: int) -> Tensor:
    """The place, window * L + n, of each of the `tokens` real tokens of an index map, int64 (tokens,)."""
    places = torch.empty(tokens + 1, dtype=torch.int64, device=index.device)
    places[index.flatten()] = torch.arange(index.numel(), device=index.device)
    return places[:tokens]


def crossings(windows: Windows, device: torch.device | None = None) -> Tensor:
    """On which axes a token of the last window lies behind the end of a shifted map: bits, int64 (L,).

    Time is bit 0, height bit 1, width bit 2.
    """
    ends = torch.tensor(windows.window, device=device) - torch.tensor(windows.shift, device=device)
    return ((_grid(windows.window, device) >= ends) * torch.tensor([1, 2, 4], device=device)).sum(-1)


def patterns(windows: Windows) -> list[int]:
    """For every window, the shifted axes whose two ends meet in it, in the same bits: at most 8 different values."""
    ends = [
        [bit if by and place == count - 1 else 0 for place in range(count)]
        for bit, by, count in zip((1, 2, 4), windows.shift, windows.counts, strict=True)
    ]
    return [sum(bits) for bits in itertools.product(*ends)]


def strangers(windows: Windows, pattern: Tensor) -> Tensor:
    """Pairs of different regions: bool (..., L, L) for windows of patterns int64 (...,)."""
    region = crossings(windows, pattern.device) & pattern[..., None]
    return region[..., :, None] != region[..., None, :]


def bias_strides(windows: Windows) -> Triple:
    """Steps in the table of biases from one offset to the next along each axis."""
    _, height, width = windows.table_window
    return (2 * height - 1) * (2 * width - 1), 2 * width - 1, 1


def relative_index(windows: Windows, device: torch.device | None = None) -> Tensor:
    """The row of the table for each pair (query, key) of a window, int64 (L, L): linear, a(query) - a(key) + center."""
    strides = torch.tensor(bias_strides(windows), device=device)
    along = (_grid(windows.bias_grid, device)[: windows.tokens] * strides).sum(-1)
    return along[:, None] - along[None, :] + windows.table_rows // 2
