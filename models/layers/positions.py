"""Fixed sine-cosine position tables (Vaswani et al. 2017, section 3.5, extended to images by MAE).

A table is (n, D), one row for each token, patches in row-major order. With two axes, q = D / 4 and
frequency_j = 10000^(-j / q), a row holds [sin(a f), cos(a f), sin(b f), cos(b f)] of its two coordinates a and b.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from omnitrunk.models.multimae_config import MultiMAEConfig


def sincos_table(height: int, width: int, dim: int, faithful: bool = False) -> Tensor:
    """The table (height * width, dim), float32, of a grid of patches; a is the row and b the column.

    `faithful` gives the table of the released MultiMAE, which is built column by column but read row by row: the same
    on square grids, scrambled on all others. `dim` must be a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"a sine-cosine table needs a width that is a multiple of 4, not {dim}; try {dim + -dim % 4}")
    divisor = height if faithful else width
    flat = torch.arange(height * width)
    return two_axis_table(flat // divisor, flat % divisor, dim, torch.float32)


def two_axis_table(first: Tensor, second: Tensor, dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The table (n, dim), float32, of tokens at integer coordinates a, `first` (n,), and b, `second` (n,).

    `dtype` is what it is computed in. `dim` must be a multiple of 4.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=dtype) / (dim // 4))
    angles = [coordinate[:, None] * frequencies for coordinate in (first, second)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()


def column_row_table(height: int, width: int, dim: int) -> Tensor:
    """The table (height * width, dim), float32, of MAE (He et al. 2022, released code): a is the column, b the row."""
    flat = torch.arange(height * width)
    return two_axis_table(flat % width, flat // width, dim)


def interleaved_table(count: int, dim: int) -> Tensor:
    """The table (count, dim), float32, of VideoMAE (Tong et al. 2022, released code), over the token's number alone.

    Channels 2 j and 2 j + 1 of row n hold sine and cosine of n / 10000^(2 j / dim). `dim` must be even.
    """
    frequencies = 10000.0 ** -(2 * torch.arange(dim // 2, dtype=torch.float64) / dim)
    angles = torch.arange(count)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).float()


def with_class_row(table: Tensor) -> Tensor:
    """A table (n, D) with a row of zeros before it, for the class token."""
    return functional.pad(table, (0, 0, 1, 0))


class FixedPositions(nn.Module):
    """A frozen table, looked up; decoders whose positions depend on the sample have a module of their own instead."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, _sample: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Tokens (B, K) -> their positions (B, K, D)."""
        return self.table.index_select(0, index.flatten()).unflatten(0, index.shape)


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
