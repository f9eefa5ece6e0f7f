"""The decoder of VideoMAE and Point-MAE: visible tokens first, then mask tokens, and only the latter are predicted.

Tong et al. 2022, section 3; Pang et al. 2022 (Point-MAE), section 3.2. Shapes: B batch, N tokens of a sample, V
visible, M masked, D and d widths of trunk and decoder, P values of a token. There is no class token.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.layers.blocks import LayerNorm, Linear
from omnitrunk.models.layers.trunk import Trunk
from omnitrunk.models.masking.token_plan import TokenPlan, flat_rows


class AppendDecoder(nn.Module):
    """Projection without bias, mask tokens appended, blocks, norm and linear output of the masked tokens."""

    def __init__(
        self,
        config: AutoencoderConfig,
        positions: nn.Module,
        values: int,
        *,
        embed: bool = True,
        position_every_block: bool = False,
    ) -> None:
        """`positions`: a module (sample, index (B, K)) -> (B, K, d); `values` P.

        Without `embed` nothing is projected, and D is d. Positions are added once, or before every block.
        """
        super().__init__()
        width = config.decoder_width
        self.position_every_block = position_every_block
        self.embed = Linear(config.width, width, bias=False) if embed else None
        self.mask_token = nn.Parameter(torch.empty(width))
        self.positions = positions
        self.blocks = Trunk(**config.decoder_trunk)
        self.norm = LayerNorm(width, config.norm_epsilon)
        self.out = Linear(width, values)

    def forward(self, encoded: Tensor, sample: Mapping[str, Tensor], plan: TokenPlan) -> Tensor:
        """Encoded (B, V, D) -> predictions (B * M, P) of the masked tokens, in the order of the plan.

        Attention sees all tokens; what comes after the last attention is computed for the masked ones only.
        """
        visible = encoded if self.embed is None else self.embed(encoded)
        masked = self.mask_token.expand(*plan.masked.shape, -1)
        tokens = torch.cat([visible, masked], dim=1)
        position = self.positions(sample, torch.cat([plan.keep, plan.masked], dim=1))
        if not self.position_every_block:
            tokens, position = tokens + position, None
        last = torch.arange(visible.shape[1], tokens.shape[1], device=tokens.device)
        rows = flat_rows(last.expand(len(tokens), -1), tokens.shape[1])
        return self.out(self.blocks(tokens, plan.decoder_drop_scale, position=position, rows=rows, norm=self.norm))

    def everywhere(self, encoded: Tensor, sample: Mapping[str, Tensor], plan: TokenPlan) -> Tensor:
        """Predictions (B, N, P) at masked tokens, NaN at visible ones."""
        rows, (batch, total) = self(encoded, sample, plan), plan.mask.shape
        nowhere = rows.new_full((batch * total, rows.shape[1]), torch.nan)
        return nowhere.index_copy(0, flat_rows(plan.masked, total), rows).unflatten(0, (batch, total))

    def flops(self, plan: TokenPlan) -> int:
        """Matrix arithmetic of `forward` on a batch."""
        (batch, visible), scored = plan.keep.shape, plan.masked.numel()
        length = visible + plan.masked.shape[1]
        embed = 0 if self.embed is None else 2 * batch * visible * self.embed.weight.numel()
        return embed + self.blocks.flops(batch, length, scored) + 2 * scored * self.out.weight.numel()
