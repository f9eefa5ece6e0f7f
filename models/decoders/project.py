"""The decoder of OmniMAE: mask tokens and positions of the trunk's width, then a projection (Girdhar et al. 2023, 3.1).

Shapes: B batch, N tokens of a sample, V visible, M masked, Q asked for, D and d widths of trunk and decoder, P values
of a patch. The projection of a sum is the sum of projections: mask token and positions, which all samples share, are
projected once for a batch, and only the visible tokens are projected one by one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from omnitrunk.kernels.linear import linear
from omnitrunk.kernels.scatter_tokens import scatter_tokens
from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.decoders.placed import PlacedDecoder, places
from omnitrunk.models.layers.blocks import LayerNorm, Linear
from omnitrunk.models.layers.trunk import Trunk
from omnitrunk.models.masking.token_plan import TokenPlan, flat_rows


class ProjectDecoder(PlacedDecoder):
    """Mask tokens at their places, positions, projection, blocks, norm, linear output."""

    def __init__(self, config: AutoencoderConfig, table: Tensor, values: int) -> None:
        """`table` (N, D): the frozen positions; samples of fewer tokens have the first of them. `values` P."""
        super().__init__()
        width = config.decoder_width
        self.mask_token = nn.Parameter(torch.empty(config.width))
        self.register_buffer("position", table)
        self.embed = Linear(config.width, width)
        self.blocks = Trunk(**config.decoder_trunk)
        self.norm = LayerNorm(width, config.norm_epsilon)
        self.out = Linear(width, values)

    def forward(
        self, encoded: Tensor, _sample: Mapping[str, Tensor], plan: TokenPlan, patches: Tensor | None = None
    ) -> Tensor:
        """Encoded (B, V, D) -> predictions (B * M, P) of the masked patches, or (B * Q, P) of `patches` (B, Q).

        Attention sees all places; what comes after the last attention is computed for the wanted ones only.
        """
        wanted = flat_rows(plan.masked if patches is None else patches, places(plan))
        restored = self._restore(encoded, plan)
        return self.out(self.blocks(restored, plan.decoder_drop_scale, rows=wanted, norm=self.norm))

    def flops(self, plan: TokenPlan) -> int:
        """Matrix arithmetic of `forward` on the masked patches of a batch."""
        (batch, visible), total = plan.keep.shape, places(plan)
        embed = 2 * (batch * visible + total + 1) * self.embed.weight.numel()
        blocks = self.blocks.flops(batch, total, plan.masked.numel())
        return embed + blocks + 2 * plan.masked.numel() * self.out.weight.numel()

    def _restore(self, encoded: Tensor, plan: TokenPlan) -> Tensor:
        """Encoded (B, V, D) at their places among mask tokens, with positions, projected: (B, N, d)."""
        batch, total = len(encoded), places(plan)
        weight, bias = self.embed.weight_and_bias()
        table = linear(self.position[:total], weight, bias)
        placed = linear(encoded, weight).flatten(0, 1) + table.index_select(0, plan.keep.flatten())
        rows, fill = flat_rows(plan.keep, total), linear(self.mask_token[None], weight)[0]
        return scatter_tokens(placed, rows, batch * total, fill=fill, table=table).unflatten(0, (batch, total))
