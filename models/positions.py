"""Fixed two-dimensional sine-cosine position tables (Vaswani et al. 2017, section 3.5, extended to images by MAE).

A table is (n, D), one row for each patch in row-major order. With q = D / 4 and frequency_j = 10000^(-j / q), a row
holds [sin(a f), cos(a f), sin(b f), cos(b f)] of its two coordinates a and b.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from omnitrunk.models.config import MultiMAEConfig


def sincos_table(height: int, width: int, dim: int, faithful: bool = False) -> Tensor:
    """The table (height * width, dim), float32, of a grid of patches; a is the row and b the column.

    `faithful` gives the table of the released MultiMAE, which is built column by column but read row by row: the same
    on square grids, scrambled on all others. `dim` must be a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"a sine-cosine table needs a width that is a multiple of 4, not {dim}; try {dim + -dim % 4}")
    divisor = height if faithful else width
    flat = torch.arange(height * width)
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    first = (flat // divisor)[:, None] * frequencies
    second = (flat % divisor)[:, None] * frequencies
    return torch.cat([first.sin(), first.cos(), second.sin(), second.cos()], dim=1)


def interpolate(table: Tensor, from_grid: tuple[int, int], to_grid: tuple[int, int], mode: str) -> Tensor:
    """A table (n, D) of one grid resampled for another, `mode` "bicubic" or "bilinear", corners not aligned."""
    image = table.unflatten(0, from_grid).permute(2, 0, 1)[None]
    resized = functional.interpolate(image, size=to_grid, mode=mode, align_corners=False)
    return resized[0].flatten(1).T.contiguous()


def stored_table(config: MultiMAEConfig, name: str, dim: int) -> Tensor:
    """The position table (n, dim) that a model keeps for a modality; faithful: of the grid at `position_size`."""
    return sincos_table(*config.position_grid(name), dim, faithful=config.faithful)


def fitted_table(config: MultiMAEConfig, name: str, stored: Tensor, mode: str) -> Tensor:
    """The stored table on the modality's actual grid: itself, or resampled where faithful mode stores another grid."""
    from_grid, to_grid = config.position_grid(name), config.grid(name)
    return stored if from_grid == to_grid else interpolate(stored, from_grid, to_grid, mode)
