"""The tensors of the released Omnivore (Girdhar et al. 2022): a trunk, and a head for each data set.

The release is a file of two state dicts, "trunk" and "heads"; here their keys have these words before them. Its tables
of indices, `relative_position_index`, follow from the window and are computed. A file may be of another window, square
and as long in time: its tables of biases are resampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import isqrt, prod

import torch
from torch import Tensor

from omnitrunk.kernels.window_attention import cut
from omnitrunk.kernels.window_attention.windows import relative_index
from omnitrunk.models.layers.offset_table import resized_offsets, square_side
from omnitrunk.models.layers.window_block import Triple
from omnitrunk.models.official.layers import linear, mlp, norm, patch_projection, same
from omnitrunk.models.official.parts import Derived, Grids, Part
from omnitrunk.models.omnivore_config import OmnivoreConfig

CHANNELS = {"rgb": 3, "depth": 1}


@dataclass(frozen=True, kw_only=True)
class OffsetTable(Part):
    """The biases of a block, one row for every offset in a window, (offsets, heads)."""

    window: Triple

    def accepts(self, shape: torch.Size) -> bool:
        """Whether an official tensor may have this shape."""
        square = len(shape) == 2 and shape[1] == self.shape[1] and square_side(shape[0], self.window[0])
        return tuple(shape) == self.shape or bool(square)

    def resized(self, shape: torch.Size) -> Grids | None:
        """Height and width of both windows where they differ."""
        if tuple(shape) == self.shape:
            return None
        return (square_side(shape[0], self.window[0]),) * 2, self.window[1:]

    def to_rows(self, tensor: Tensor) -> Tensor:
        """The official table as ours, resampled where its window is another."""
        return tensor if tuple(tensor.shape) == self.shape else resized_offsets(tensor, self.window)


@dataclass(frozen=True, kw_only=True)
class Index(Derived):
    """The table of indices, (L, L) for the L tokens of a window."""

    window: Triple

    def expected(self, shape: torch.Size) -> Tensor:
        """That of a square window of so many tokens; ours where there is none."""
        side = isqrt(shape[0] // self.window[0])
        square = (self.window[0], side, side)
        return self.value() if prod(square) != shape[0] else _indices(square)


def layout(config: OmnivoreConfig) -> Iterator[Part | Derived]:
    """All tensors of a released model of these sizes and data sets."""
    names = {"rgb": "patch_embed", "depth": "depth_patch_embed"}
    for ours in ("rgb", "depth") if config.rgbd_sets else ("rgb",):
        theirs, tokenizer = f"trunk.{names[ours]}", f"tokenizers.{ours}"
        yield from patch_projection(f"{theirs}.proj", tokenizer, config.width, CHANNELS[ours], config.patch)
        yield from norm(f"{theirs}.norm", f"{tokenizer}.norm", config.width)
    for number in range(len(config.depths)):
        yield from _stage(number, config)
    yield from norm("trunk.norm", "trunk.norm", config.features)
    for name, classes in config.classes.items():
        # A head with dropout is a sequence of two modules in the release.
        theirs = f"heads.{name}.1" if name in config.head_dropout else f"heads.{name}"
        head = linear(theirs, f"heads.{name}", classes, config.features)
        yield from head if len(config.classes) > 1 else map(_nameless, head)


def _nameless(part: Part) -> Part:
    """The same, which a file of one head may also have without the data set's name, as that of EPIC-Kitchens has."""
    return replace(part, alias=f"heads.1.{part.ours.rpartition('.')[2]}")


def _stage(number: int, config: OmnivoreConfig) -> Iterator[Part | Derived]:
    theirs, ours, width = f"trunk.layers.{number}", f"trunk.stages.{number}", config.width << number
    for block in range(config.depths[number]):
        yield from _block(f"{theirs}.blocks.{block}", f"{ours}.blocks.{block}", width, config.heads[number], config)
    if number + 1 < len(config.depths):
        yield from norm(f"{theirs}.downsample.norm", f"{ours}.merge.norm", 4 * width)
        yield from linear(f"{theirs}.downsample.reduction", f"{ours}.merge.reduction", 2 * width, 4 * width, bias=False)


def _block(theirs: str, ours: str, width: int, heads: int, config: OmnivoreConfig) -> Iterator[Part | Derived]:
    for name in ("norm1", "norm2"):
        yield from norm(f"{theirs}.{name}", f"{ours}.{name}", width)
    offsets = prod(2 * extent - 1 for extent in config.window)
    table = same(f"{theirs}.attn.relative_position_bias_table", f"{ours}.attn.bias_table", offsets, heads)
    yield OffsetTable(**vars(table), window=config.window)
    yield Index(
        official=f"{theirs}.attn.relative_position_index",
        value=partial(_indices, config.window),
        window=config.window,
    )
    yield from linear(f"{theirs}.attn.qkv", f"{ours}.attn.qkv", 3 * width, width)
    yield from linear(f"{theirs}.attn.proj", f"{ours}.attn.proj", width, width)
    yield from mlp(f"{theirs}.mlp", f"{ours}.mlp", width, config.mlp_ratio)


def _indices(window: Triple) -> Tensor:
    """The row of the table for each pair of tokens of a whole window, int64 (L, L)."""
    return relative_index(cut(window, window, (0, 0, 0)))
