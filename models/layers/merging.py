"""Patch merging: four neighbors of a map become one token of twice the width (Liu et al. 2021, section 3.1)."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.models.layers.blocks import LayerNorm, Linear
from omnitrunk.models.layers.window_block import EPSILON, Triple


class PatchMerging(nn.Module):
    """Squares of 2 x 2 tokens, side by side, normed and projected; time is never merged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * width, EPSILON)
        self.reduction = Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, D) -> (B, T, H / 2, W / 2, 2 D), rounded up: zeros complete an odd side."""
        height, width = x.shape[2:4]
        if height % 2 or width % 2:
            x = functional.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        squares = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        # The release goes down the columns of a square.
        return self.reduction(self.norm(squares.permute(0, 1, 2, 4, 5, 3, 6).flatten(4)))

    def flops(self, size: Triple) -> int:
        """Matrix arithmetic on one map of T, H, W tokens."""
        return 2 * prod(merged(size)) * self.reduction.weight.numel()


def merged(size: Triple) -> Triple:
    """T, H, W of a map after merging."""
    return size[0], -(-size[1] // 2), -(-size[2] // 2)
