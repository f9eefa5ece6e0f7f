"""The transformer's building blocks, on the kernels. They work alike in the trunk and in the decoders.

Shapes: B batch, N tokens, S context tokens, D width, H heads. Blocks are pre-norm and hold back their last addition: a
block takes and returns a pair (stream, branch) whose sum is the residual stream, so that the addition, its drop-path
factor and the next LayerNorm are one pass over memory. Parameters get their values from models.initialize.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omnitrunk.kernels.attention import attention
from omnitrunk.kernels.gather_tokens import gather_tokens
from omnitrunk.kernels.layer_norm import layer_norm
from omnitrunk.kernels.linear import linear
from omnitrunk.kernels.mlp import mlp


class Linear(nn.Module):
    """A linear layer with bias, on the kernel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    """LayerNorm with epsilon 1e-6 that can first add a branch to the residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return layer_norm(x, self.weight, self.bias)

    def add(self, branch: Tensor | None, stream: Tensor, drop_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns (norm, stream) of stream + drop_scale * branch; a branch of None adds nothing."""
        if branch is None:
            return layer_norm(stream, self.weight, self.bias), stream
        return layer_norm(branch, self.weight, self.bias, residual=stream, drop_scale=drop_scale)


class Attention(nn.Module):
    """Multi-head self-attention; the rows of qkv are ordered q, k, v, then head (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); with `rows` (Q,) of the flat (B * N), only these are projected, (Q, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.proj(take_rows(attention(q, k, v).flatten(2), rows))


class CrossAttention(nn.Module):
    """Attention of queries, projected by the caller with `q`, on a context projected here with `kv`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)

    def forward(self, q: Tensor, context: Tensor, rows: Tensor | None = None) -> Tensor:
        """Queries (B, N, D) and context (B, S, D) -> (B, N, D), or (Q, D) for `rows` (Q,) of the flat (B * N)."""
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).unbind(2)
        mixed = attention(q.unflatten(-1, (self.heads, -1)), k, v)
        return self.proj(take_rows(mixed.flatten(2), rows))


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)


class Block(nn.Module):
    """Pre-norm transformer block (Dosovitskiy et al. 2021, section 3.1), its last addition left to the next one."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(
        self,
        stream: Tensor,
        branch: Tensor | None,
        *,
        drop_scales: tuple[Tensor | None, Tensor | None] = (None, None),
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Stream and branch (B, N, D) -> stream and branch; with `rows` (Q,) of the flat (B * N), both come as (Q, D).

        `drop_scales` (B,) belong to the incoming branch and to the attention. With `rows`, attention still sees all
        tokens, but everything after it is computed for these only.
        """
        y, stream = self.norm1.add(branch, stream, drop_scales[0])
        branch, stream = self.attn(y, rows), take_rows(stream, rows)
        y, stream = self.norm2.add(branch, stream, drop_scales[1])
        return stream, self.mlp(y)


def take_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """Rows (Q,) of the flat (B * N, D) view of (B, N, D) -> (Q, D); None leaves x as it is."""
    return x if rows is None else gather_tokens(x.flatten(0, 1), rows)
