"""The decoder of AudioMAE: mask tokens fill the places of what is missing, and attention stays inside of windows.

What a spectrogram shows at one time and pitch follows from what is near (Huang et al. 2022, section 3, "decoder"). The
windows of every other block are shifted along time (Liu et al. 2021); attention goes by the cosine of queries and keys,
biases come from an MLP of the distance, and norms stand after the branches (Liu et al. 2022, Swin V2, section 3).
Shapes: B batch, N tokens of a sample, on a grid of times by bands, V visible, M masked, Q asked for, D and d widths of
trunk and decoder, P values of a patch. There is no class token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.kernels.scatter_tokens import scatter_tokens
from omnitrunk.kernels.window_attention import window_attention
from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.decoders.placed import PlacedDecoder
from omnitrunk.models.layers.blocks import LayerNorm, Linear, Mlp, QkvLinear, take_rows
from omnitrunk.models.masking.token_plan import TokenPlan, flat_rows

WINDOW = 4
"""Tokens along each side of a window."""
SHIFT = 2
"""Tokens by which the windows of every other block are shifted along time."""
BIAS_WIDTH = 384
"""Hidden width of the MLP that makes biases."""
LEAST_TEMPERATURE = 0.01
LEAST_LENGTH = 1e-6
"""Of a query or a key; the release holds the product of both lengths at this or more."""


class LocalDecoder(PlacedDecoder):
    """Projection, mask tokens at their places, blocks of local attention, norm, linear output."""

    def __init__(self, config: AutoencoderConfig, grid: tuple[int, int], table: Tensor, values: int) -> None:
        """`grid` of times by bands, `table` (N, d) of frozen positions, `values` P."""
        super().__init__()
        width = config.decoder_width
        self.embed = Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.register_buffer("position", table)
        self.blocks = nn.ModuleList(
            LocalBlock(config, grid, shift=SHIFT * (number % 2)) for number in range(config.decoder_depth)
        )
        self.norm = LayerNorm(width, config.norm_epsilon)
        self.out = Linear(width, values)

    def forward(
        self, encoded: Tensor, _sample: Mapping[str, Tensor], plan: TokenPlan, patches: Tensor | None = None
    ) -> Tensor:
        """Encoded (B, 1 + V, D) -> predictions (B * M, P) of the masked patches, or (B * Q, P) of `patches` (B, Q).

        Attention sees all places; what comes after the last attention is computed for the wanted ones only.
        """
        wanted = flat_rows(plan.masked if patches is None else patches, len(self.position))
        x = self._restore(self.embed(encoded[:, 1:]), plan.keep)
        for block in self.blocks[:-1]:
            x = block(x)
        rows = self.blocks[-1](x, wanted) if len(self.blocks) else take_rows(x, wanted)
        return self.out(self.norm(rows))

    def flops(self, plan: TokenPlan) -> int:
        """Matrix arithmetic of `forward` on the masked patches of a batch."""
        rows, scored = len(plan.keep) * len(self.position), plan.masked.numel()
        blocks = sum(block.flops(rows, scored if block is self.blocks[-1] else rows) for block in self.blocks)
        return 2 * plan.keep.numel() * self.embed.weight.numel() + blocks + 2 * scored * self.out.weight.numel()

    def _restore(self, visible: Tensor, keep: Tensor) -> Tensor:
        """Visible tokens (B, V, d) at their places among mask tokens, (B, N, d)."""
        batch, length = len(visible), len(self.position)
        placed = visible.flatten(0, 1) + self.position.index_select(0, keep.flatten())
        rows = flat_rows(keep, length)
        tokens = scatter_tokens(placed, rows, batch * length, fill=self.mask_token, table=self.position)
        return tokens.unflatten(0, (batch, length))


class LocalBlock(nn.Module):
    """Local attention and an MLP, each with a norm after it, inside of the residual branch."""

    def __init__(self, config: AutoencoderConfig, grid: tuple[int, int], shift: int) -> None:
        """`shift` of the windows along time, in tokens."""
        super().__init__()
        width = config.decoder_width
        self.attn = LocalAttention(width, config.decoder_heads, grid, shift)
        self.norm1 = LayerNorm(width, config.norm_epsilon)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.norm2 = LayerNorm(width, config.norm_epsilon)

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, N, d) -> (B, N, d); with `rows` (Q,) of the flat (B * N), (Q, d): attention alone sees all tokens."""
        x = take_rows(x, rows) + self.norm1(self.attn(x, rows))
        return x + self.norm2(self.mlp(x))

    def flops(self, rows: int, scored: int) -> int:
        """Matrix arithmetic on so many tokens of all samples together, `scored` of them going on after attention."""
        attention = rows * (2 * self.attn.qkv.weight.numel() + 4 * self.attn.window_tokens * len(self.norm1.weight))
        later = sum(layer.weight.numel() for layer in (self.attn.proj, self.mlp.fc1, self.mlp.fc2))
        return attention + self.attn.offset_bias.flops() + 2 * scored * later


class LocalAttention(nn.Module):
    """Attention among the tokens of a window: softmax(cosine(q, k) / temperature + bias(distance)) v, head by head."""

    def __init__(self, width: int, heads: int, grid: tuple[int, int], shift: int) -> None:
        super().__init__()
        self.heads, self.grid, self.shift = heads, grid, shift
        self.window_tokens = math.prod(min(WINDOW, side) for side in grid)
        self.qkv = QkvLinear(width, "qkv")
        self.temperature = nn.Parameter(torch.empty(heads))
        self.offset_bias = OffsetBias(heads)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, N, d) -> (B, N, d); with `rows` (Q,) of the flat (B * N), only these are projected, (Q, d)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unflatten(1, (1, *self.grid))
        mixed = window_attention(
            self._normalized(qkv),
            self.offset_bias(),
            window=(1, WINDOW, WINDOW),
            shift=(0, self.shift, 0),
            scale=1.0,
            faithful=False,
        )
        return self.proj(take_rows(mixed.flatten(1, 3).flatten(2), rows))

    def _normalized(self, qkv: Tensor) -> Tensor:
        """Projections (..., 3, heads, width of a head), queries and keys at length 1, queries by temperature."""
        wide = torch.promote_types(qkv.dtype, torch.float32)
        lengths = torch.linalg.vector_norm(qkv[..., :2, :, :], dim=-1, keepdim=True, dtype=wide).clamp(LEAST_LENGTH)
        temperature = self.temperature.clamp(LEAST_TEMPERATURE)[:, None]
        units = torch.stack([temperature, torch.ones_like(temperature)]) * lengths
        return qkv * functional.pad(units.reciprocal(), (0, 0, 0, 0, 0, 1), value=1.0).to(qkv.dtype)


class OffsetBias(nn.Module):
    """A bias for every offset between two tokens of a window, by an MLP of its logarithm (Swin V2, section 3.3).

    The release drops a tenth of the MLP's values in training, by a global generator; here all of them count.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.fc1 = Linear(2, BIAS_WIDTH)
        self.fc2 = Linear(BIAS_WIDTH, heads)
        steps = torch.arange(1 - WINDOW, WINDOW).float()
        along = steps.sign() * steps.abs().log1p()
        self.register_buffer("offsets", torch.cartesian_prod(along, along), persistent=False)

    def forward(self) -> Tensor:
        """The table (offsets of a window, heads) of window_attention, in the precision of the weights."""
        with torch.autocast(self.offsets.device.type, enabled=False):
            return self.fc2(functional.relu(self.fc1(self.offsets)))

    def flops(self) -> int:
        """Matrix arithmetic of the forward pass, once for a whole batch."""
        return 2 * len(self.offsets) * (self.fc1.weight.numel() + self.fc2.weight.numel())
