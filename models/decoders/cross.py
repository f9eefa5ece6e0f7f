"""A decoder: reconstructs all patches of one output from what the encoder saw of every modality.

Bachmann et al. 2022, section 3.2 and figure 2: queries are the positions of the output, its visible tokens where there
are some and a mask token elsewhere. They look at all visible tokens by cross-attention, then at each other.

Shapes: B batch, S encoder tokens, n positions of the output, M of them visible in the batch, Q rows that are wanted,
d width, T inputs, N positions of all inputs, P values predicted for a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omnitrunk.kernels.gather_tokens import gather_tokens
from omnitrunk.kernels.scatter_tokens import scatter_tokens
from omnitrunk.models.layers.blocks import Block, CrossAttention, LayerNorm, Linear, Mlp
from omnitrunk.models.layers.positions import fitted_table, stored_table
from omnitrunk.models.masking.mask_plan import MaskPlan
from omnitrunk.models.multimae_config import MultiMAEConfig


class Decoder(nn.Module):
    """Cross-attention without a residual, an MLP, self-attention blocks and a linear output; no norm at the end."""

    def __init__(self, output: str, config: MultiMAEConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.output, self.config = output, config
        self.mask_token = nn.Parameter(torch.empty(width))
        self.task_embedding = nn.Parameter(torch.empty(len(config.inputs), width))
        self.query_norm = LayerNorm(width)
        self.context_norm = LayerNorm(width)
        self.out_norm = LayerNorm(width)
        self.cross = CrossAttention(width, config.decoder_heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_heads, config.mlp_ratio) for _ in range(config.decoder_depth)
        )
        self.out = Linear(width, config.patch_values(output))
        self.register_buffer("position", stored_table(config, output, width))
        if any(config.grid(name) != config.grid(output) for name in config.inputs):
            tables = [stored_table(config, name, width) for name in config.inputs]
            self.register_buffer("context_position", torch.cat(tables))
        self.refresh()

    def refresh(self) -> None:
        """Derive the table of the actual grid from the stored one, which a checkpoint may have replaced."""
        fitted = fitted_table(self.config, self.output, self.position, "bilinear")
        self.register_buffer("fitted", fitted, persistent=False)

    def input_positions(self) -> Tensor:
        """This decoder's positions of all inputs' tokens, (N, d)."""
        inputs = self.config.inputs
        if not hasattr(self, "context_position"):
            return self.fitted.repeat(len(inputs), 1)
        counts = [rows * columns for rows, columns in map(self.config.position_grid, inputs)]
        stored = zip(inputs, self.context_position.split(counts), strict=True)
        return torch.cat([fitted_table(self.config, name, table, "bilinear") for name, table in stored])

    def forward(self, context: Tensor, plan: MaskPlan, rows: Tensor | None = None) -> Tensor:
        """Context (B, S, d) -> predictions (B, n, P), or (Q, P) for flat `rows` (Q,) of B * n.

        Values of a prediction are in (row, column, channel or class) order. Attention sees all positions; what comes
        after the last attention is computed for the wanted rows only.
        """
        last = len(self.blocks) - 1
        x = self.cross(self._queries(context, plan), self.context_norm(context), rows if last < 0 else None)
        stream, branch = x, self.mlp(self.out_norm(x))
        for number, block in enumerate(self.blocks):
            stream, branch = block(stream, branch, rows=rows if number == last else None)
        return self.out(stream + branch)

    def _queries(self, context: Tensor, plan: MaskPlan) -> Tensor:
        """Normed and projected queries (B, n, d).

        A masked position has the same query in every sample, so masked queries are normed and projected once for the
        batch, (n, d), and copied; only visible tokens, (M, d), have queries of their own.
        """
        source = self.config.masked_like(self.output)
        if source is None:
            queries = self.cross.q(self.query_norm(self.fitted + self.mask_token))
            return queries.expand(len(context), -1, -1)
        masked = self.fitted + (self.mask_token + self.task_embedding[self.config.inputs.index(source)])
        visible = gather_tokens(context.flatten(0, 1), plan.slots[source])
        queries = self.cross.q(self.query_norm(torch.cat([visible, masked])))
        visible, masked = queries.split([len(visible), len(masked)])
        size = len(context) * len(masked)
        return scatter_tokens(visible, plan.visible[source], size, table=masked).unflatten(0, (len(context), -1))
