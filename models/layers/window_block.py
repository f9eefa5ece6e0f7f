"""The block of shifted-window transformers: attention inside windows of a map, and an MLP.

Liu et al. 2021, section 3.2 (Swin); Liu et al. 2022, section 3.2 (Video Swin). B batch; T, H, W tokens of the map along
time, height and width, D width. A picture is a map with T = 1. Nothing is rolled, padded or cut up in memory: see
omnitrunk.kernels.window_attention.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from omnitrunk.kernels.linear import linear
from omnitrunk.kernels.window_attention import cut, window_attention
from omnitrunk.models.layers.blocks import Attention, LayerNorm, Mlp

Triple = tuple[int, int, int]
EPSILON = 1e-5
"""Of every LayerNorm of these models."""


class WindowAttention(Attention):
    """Multi-head self-attention inside windows, with a learned bias for every offset between two tokens of a window."""

    def __init__(self, width: int, heads: int, *, window: Triple, shift: Triple, faithful: bool) -> None:
        super().__init__(width, heads)
        self.window, self.shift, self.faithful = window, shift, faithful
        self.bias_table = nn.Parameter(torch.empty(prod(2 * extent - 1 for extent in window), heads))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, D) -> (B, T, H, W, D)."""
        weight, bias = self.qkv.weight_and_bias()
        mixed = window_attention(
            linear(x, weight, bias).unflatten(-1, (3, self.heads, -1)),
            self.bias_table,
            window=self.window,
            shift=self.shift,
            # The release pads what it projects with zeros, so that windows beyond the map hold the bias.
            padding=bias.unflatten(0, (3, self.heads, -1)),
            faithful=self.faithful,
        )
        return self.proj(mixed.flatten(4))


class WindowBlock(nn.Module):
    """Pre-norm block, its last addition left to the next one, like models.layers.blocks.Block."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, *, window: Triple, shifted: bool, faithful: bool
    ) -> None:
        """`window` is what the model is made for; one that is `shifted` begins half a window later on every axis.

        `faithful` is that of omnitrunk.kernels.window_attention: the biases of a window that a small map clips.
        """
        super().__init__()
        shift = tuple(extent // 2 if shifted else 0 for extent in window)
        self.norm1 = LayerNorm(width, EPSILON)
        self.attn = WindowAttention(width, heads, window=window, shift=shift, faithful=faithful)
        self.norm2 = LayerNorm(width, EPSILON)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(
        self, stream: Tensor, branch: Tensor | None, drop_scales: tuple[Tensor | None, Tensor | None] = (None, None)
    ) -> tuple[Tensor, Tensor]:
        """Stream and branch (B, T, H, W, D) -> stream and branch, whose sum is the residual stream.

        `drop_scales` (B,) belong to the incoming branch and to the attention.
        """
        y, stream = self.norm1.add(branch, stream, drop_scales[0])
        y, stream = self.norm2.add(self.attn(y), stream, drop_scales[1])
        return stream, self.mlp(y)

    def flops(self, size: Triple) -> int:
        """Matrix arithmetic on one map of T, H, W tokens."""
        windows, width = cut(size, self.attn.window, self.attn.shift), len(self.norm1.weight)
        layers = (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2)
        products = 2 * prod(size) * sum(layer.weight.numel() for layer in layers)
        return products + 4 * windows.number * windows.tokens**2 * width
