"""The trunk: the one stack of transformer blocks that the tokens of all modalities pass through together."""

from __future__ import annotations

from torch import Tensor, nn

from omnitrunk.models.layers import Block


class Trunk(nn.ModuleList):
    """Pre-norm blocks on (B, N, D), without a norm at the end."""

    def __init__(self, *, width: int, depth: int, heads: int, mlp_ratio: float) -> None:
        super().__init__(Block(width, heads, mlp_ratio) for _ in range(depth))

    def forward(self, tokens: Tensor, drop_scale: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); drop_scale (2 * depth, B) scales every branch of every sample, or None."""
        scales = [None] * (2 * len(self)) if drop_scale is None else list(drop_scale)
        stream, branch, scale = tokens, None, None
        for block, attention_scale, mlp_scale in zip(self, scales[0::2], scales[1::2], strict=True):
            stream, branch = block(stream, branch, drop_scales=(scale, attention_scale))
            scale = mlp_scale
        if branch is None:
            return stream
        return stream + (branch if scale is None else branch * scale[:, None, None].to(branch.dtype))
