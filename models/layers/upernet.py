"""The segmentation head UPerNet on the maps of a hierarchical trunk (Xiao et al. 2018, section 3).

Pyramid pooling of the last map, a projection of every other one, sums from coarse to fine, and one convolution over all
levels. The paper's batch norms are LayerNorms over channels here: they mean the same for one picture as for many, so
accumulating gradients changes nothing. B batch; H, W tokens of a map; D its width; C channels of the head. Channels are
last everywhere: what the paper calls a 1 x 1 convolution is a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.models.layers.blocks import LayerNorm, Linear
from omnitrunk.models.layers.window_block import EPSILON

SQUARE = 3
"""Side of the convolutions' kernels."""
Change = Callable[[Tensor, int], Tensor]
"""Vectors (1, n, length) -> (1, n, another length)."""


class Projection(nn.Module):
    """A linear layer, a norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = Linear(inputs, outputs, bias=False)
        self.norm = LayerNorm(outputs, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, inputs) -> (B, H, W, outputs)."""
        return functional.relu(self.norm(self.linear(x)))

    def flops(self, tokens: int) -> int:
        """Matrix arithmetic on so many tokens."""
        return 2 * tokens * self.linear.weight.numel()


class Convolution(nn.Module):
    """A convolution over squares of 3 x 3 tokens, beyond the edge zeros; a norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, SQUARE, SQUARE))
        self.norm = LayerNorm(outputs, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, inputs) -> (B, H, W, outputs)."""
        mixed = functional.conv2d(x.permute(0, 3, 1, 2), self.weight, padding=SQUARE // 2)
        return functional.relu(self.norm(mixed.permute(0, 2, 3, 1).contiguous()))

    def flops(self, tokens: int) -> int:
        """Matrix arithmetic on so many tokens, zeros beyond the edge included."""
        return 2 * tokens * self.weight.numel()


class Lateral(Projection):
    """What a level that the trunk has not normed itself gives to the sums: a norm, then the projection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.map_norm = LayerNorm(inputs, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, inputs) -> (B, H, W, outputs)."""
        return super().forward(self.map_norm(x))


class PyramidPooling(nn.Module):
    """A map beside its means over grids of few cells, brought back to its size (Zhao et al. 2017, section 3.2)."""

    def __init__(self, inputs: int, outputs: int, grids: Sequence[int]) -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.branches = nn.ModuleList(Projection(inputs, outputs) for _ in self.grids)
        self.fuse = Convolution(inputs + len(self.grids) * outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, inputs) -> (B, H, W, outputs)."""
        size = x.shape[1:3]
        pooled = (branch(pool(x, grid)) for grid, branch in zip(self.grids, self.branches, strict=True))
        return self.fuse(torch.cat([x, *(resize(y, size) for y in pooled)], dim=3))

    def flops(self, size: tuple[int, int]) -> int:
        """Matrix arithmetic on one map of H, W tokens."""
        height, width = size
        inputs, outputs = self.fuse.weight.shape[1] - len(self.grids) * len(self.fuse.weight), len(self.fuse.weight)
        total = self.fuse.flops(height * width)
        for grid, branch in zip(self.grids, self.branches, strict=True):
            total += branch.flops(grid * grid) + resize_flops(size, (grid, grid), inputs)
            total += resize_flops((grid, grid), size, outputs)
        return total


class UPerNet(nn.Module):
    """Maps of all levels, from fine to coarse, the last one normed -> logits of every token of the finest one."""

    def __init__(self, widths: Sequence[int], channels: int, classes: int, grids: Sequence[int]) -> None:
        """`widths` of the maps; `grids` of the pyramid's pools."""
        super().__init__()
        self.laterals = nn.ModuleList(Lateral(width, channels) for width in widths[:-1])
        self.pyramid = PyramidPooling(widths[-1], channels, grids)
        self.smooth = nn.ModuleList(Convolution(channels, channels) for _ in widths[:-1])
        self.fuse = Convolution(len(widths) * channels, channels)
        self.classifier = Linear(channels, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, H, W, D) of every level -> (B, H, W, classes) on the first one's grid."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps[:-1], strict=True)]
        levels.append(self.pyramid(maps[-1]))
        for fine in reversed(range(len(levels) - 1)):
            levels[fine] = levels[fine] + resize(levels[fine + 1], levels[fine].shape[1:3])
        smoothed = [smooth(level) for smooth, level in zip(self.smooth, levels[:-1], strict=True)]
        size = levels[0].shape[1:3]
        return self.classifier(self.fuse(torch.cat([resize(x, size) for x in (*smoothed, levels[-1])], dim=3)))

    def flops(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Matrix arithmetic on maps of H, W tokens each."""
        channels, areas = len(self.fuse.weight), [height * width for height, width in sizes]
        each = zip(self.laterals, self.smooth, areas[:-1], strict=True)
        levels = sum(lateral.flops(area) + smooth.flops(area) for lateral, smooth, area in each)
        steps = sum(resize_flops(coarse, fine, channels) for fine, coarse in pairwise(sizes))
        up = sum(resize_flops(size, sizes[0], channels) for size in sizes)
        last = self.fuse.flops(areas[0]) + 2 * areas[0] * self.classifier.weight.numel()
        return levels + self.pyramid.flops(sizes[-1]) + steps + up + last


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map (B, H, W, D) interpolated bilinearly to (B, *size, D), corners not aligned."""
    return _along_both(x, size, _interpolate)


def pool(x: Tensor, cells: int) -> Tensor:
    """The means (B, cells, cells, D) of a map (B, H, W, D) over the cells of a grid, which overlap if need be."""
    return _along_both(x, (cells, cells), functional.adaptive_avg_pool1d)


def _interpolate(values: Tensor, wanted: int) -> Tensor:
    return functional.interpolate(values, wanted, mode="linear", align_corners=False)


def resize_flops(size: Sequence[int], wanted: Sequence[int], channels: int) -> int:
    """Matrix arithmetic of `resize` or `pool` on a map of H, W tokens."""
    if tuple(size) == tuple(wanted):
        return 0
    return 2 * channels * wanted[0] * size[1] * (size[0] + wanted[1])


def _along_both(x: Tensor, size: Sequence[int], change: Change) -> Tensor:
    """What changes each axis of a map by itself and linearly, as two products with small matrices.

    So the backward pass is a product as well, and not, as those of torch's functions on a GPU, a sum in any order.
    """
    if x.shape[1:3] == tuple(size):
        return x
    rows, columns = (_matrix(change, *lengths, x.dtype, x.device) for lengths in zip(x.shape[1:3], size, strict=True))
    down = rows @ x.flatten(2)
    return columns @ down.unflatten(2, x.shape[2:])


@lru_cache(maxsize=256)
def _matrix(change: Change, length: int, wanted: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (wanted, length) of a change: what it makes of the unit vectors."""
    units = torch.eye(length, dtype=torch.float64)[None]
    return change(units, wanted)[0].T.to(device, dtype).contiguous()
