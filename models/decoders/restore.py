"""The decoder of MAE: mask tokens fill the places of what is missing, and every place is decoded.

He et al. 2022, section 3 and figure 1. Shapes: B batch, N tokens of a sample, V visible, M masked, Q asked for, D and d
widths of trunk and decoder, P values of a patch. The class token stands first and is decoded along with the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.kernels.scatter_tokens import scatter_tokens
from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.decoders.placed import PlacedDecoder
from omnitrunk.models.layers.blocks import LayerNorm, Linear
from omnitrunk.models.layers.trunk import Trunk
from omnitrunk.models.masking.token_plan import TokenPlan, flat_rows


class RestoreDecoder(PlacedDecoder):
    """Projection, mask tokens at their places, blocks, norm, linear output."""

    def __init__(self, config: AutoencoderConfig, table: Tensor, values: int) -> None:
        """`table` (1 + N, d): the frozen positions, the class token's first; `values` P."""
        super().__init__()
        width = config.decoder_width
        self.embed = Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.register_buffer("position", table)
        self.blocks = Trunk(**config.decoder_trunk)
        self.norm = LayerNorm(width, config.norm_epsilon)
        self.out = Linear(width, values)

    def forward(
        self, encoded: Tensor, _sample: Mapping[str, Tensor], plan: TokenPlan, patches: Tensor | None = None
    ) -> Tensor:
        """Encoded (B, 1 + V, D) -> predictions (B * M, P) of the masked patches, or (B * Q, P) of `patches` (B, Q).

        Attention sees all places; what comes after the last attention is computed for the wanted ones only.
        """
        wanted = flat_rows(1 + (plan.masked if patches is None else patches), len(self.position))
        restored = self._restore(self.embed(encoded), plan.keep)
        return self.out(self.blocks(restored, plan.decoder_drop_scale, rows=wanted, norm=self.norm))

    def flops(self, plan: TokenPlan) -> int:
        """Matrix arithmetic of `forward` on the masked patches of a batch."""
        batch, length, scored = len(plan.keep), len(self.position), plan.masked.numel()
        embed = 2 * batch * (1 + plan.keep.shape[1]) * self.embed.weight.numel()
        return embed + self.blocks.flops(batch, length, scored) + 2 * scored * self.out.weight.numel()

    def _restore(self, visible: Tensor, keep: Tensor) -> Tensor:
        """Visible tokens (B, 1 + V, d), class token first, at their places among mask tokens, (B, 1 + N, d)."""
        batch, length = len(visible), len(self.position)
        places = functional.pad(1 + keep, (1, 0))
        placed = visible.flatten(0, 1) + self.position.index_select(0, places.flatten())
        rows = flat_rows(places, length)
        tokens = scatter_tokens(placed, rows, batch * length, fill=self.mask_token, table=self.position)
        return tokens.unflatten(0, (batch, length))
