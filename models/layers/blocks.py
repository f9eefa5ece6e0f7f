"""The transformer's building blocks, on the kernels. They work alike in the trunk and in the decoders.

Shapes: B batch, N tokens, S context tokens, D width, H heads. Blocks are pre-norm and hold back their last addition: a
block takes and returns a pair (stream, branch) whose sum is the residual stream, so that the addition, its drop-path
factor and the next LayerNorm are one pass over memory. Parameters get their values from models.initialize.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from omnitrunk.kernels.attention import attention
from omnitrunk.kernels.attention.packed import unpack
from omnitrunk.kernels.gather_tokens import gather_tokens
from omnitrunk.kernels.layer_norm import layer_norm
from omnitrunk.kernels.linear import linear
from omnitrunk.kernels.mlp import mlp

QkvBias = Literal["qkv", "qv", "none"]
"""Which of queries, keys and values have a bias: all, all but the keys (VideoMAE), none (Point-MAE)."""


class Linear(nn.Module):
    """A linear layer, on the kernel."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.register_parameter("bias", nn.Parameter(torch.empty(outputs)) if bias else None)
        self.pathway: nn.Module | None = None
        """What joins the weight with those of other models; models.pathway puts it there."""

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The weight (outputs, inputs) and bias (outputs,) that the layer computes with.

        Every computation asks for them here, so that a layer may compute with other numbers than it stores.
        """
        return self.weight if self.pathway is None else self.pathway(self.weight), self.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return linear(x, *self.weight_and_bias())


class QkvLinear(Linear):
    """The projection to queries, keys and values, with the bias that the system has.

    A bias of the keys shifts all logits of a query alike and so changes nothing; "qv" holds it at zero.
    """

    def __init__(self, width: int, bias: QkvBias) -> None:
        super().__init__(width, 3 * width, bias=bias == "qkv")
        self.split = bias == "qv"
        if self.split:
            self.q_bias = nn.Parameter(torch.empty(width))
            self.v_bias = nn.Parameter(torch.empty(width))
            self.register_buffer("k_bias", torch.zeros(width), persistent=False)

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The weight (3 * D, D) and the bias (3 * D,), put together where it is stored in parts."""
        weight, bias = super().weight_and_bias()
        return weight, torch.cat([self.q_bias, self.k_bias, self.v_bias]) if self.split else bias


class LayerNorm(nn.Module):
    """LayerNorm that can first add a branch to the residual stream."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, branch: Tensor | None, stream: Tensor, drop_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns (norm, stream) of stream + drop_scale * branch; a branch of None adds nothing."""
        if branch is None:
            return self(stream), stream
        return layer_norm(branch, self.weight, self.bias, self.eps, residual=stream, drop_scale=drop_scale)


class Attention(nn.Module):
    """Multi-head self-attention; the rows of qkv are ordered q, k, v, then head (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, width: int, heads: int, bias: QkvBias = "qkv") -> None:
        super().__init__()
        self.heads = heads
        self.qkv = QkvLinear(width, bias)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); with `rows` (Q,) of the flat (B * N), only these are projected, (Q, D)."""
        q, k, v = unpack(self.qkv(x).unflatten(-1, (3, self.heads, -1)))
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
        k, v = unpack(self.kv(context).unflatten(-1, (2, self.heads, -1)))
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
        return mlp(x, *self.fc1.weight_and_bias(), *self.fc2.weight_and_bias())


class Block(nn.Module):
    """Pre-norm transformer block (Dosovitskiy et al. 2021, section 3.1), its last addition left to the next one."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, bias: QkvBias = "qkv", eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps)
        self.attn = Attention(width, heads, bias)
        self.norm2 = LayerNorm(width, eps)
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
        y, whole = self.norm1.add(branch, stream, drop_scales[0])
        branch, stream = self.attn(y, rows), take_rows(whole, rows)
        y, stream = self.norm2.add(branch, stream, scale_of_rows(drop_scales[1], rows, whole.shape[1]))
        return stream, self.mlp(y)

    def flops(self, batch: int, tokens: int, scored: int) -> int:
        """Matrix arithmetic on B sequences of N tokens, `scored` rows in all going on after the attention."""
        width = len(self.norm1.weight)
        attention = 2 * batch * tokens * self.attn.qkv.weight.numel() + 4 * batch * tokens**2 * width
        later = sum(layer.weight.numel() for layer in (self.attn.proj, self.mlp.fc1, self.mlp.fc2))
        return attention + 2 * scored * later


def take_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """Rows (Q,) of the flat (B * N, D) view of (B, N, D) -> (Q, D); None leaves x as it is."""
    return x if rows is None else gather_tokens(x.flatten(0, 1), rows)


def scale_of_rows(scale: Tensor | None, rows: Tensor | None, tokens: int) -> Tensor | None:
    """Factors (B,) of samples of N `tokens` -> those of the samples that rows (Q,) of the flat (B * N) belong to."""
    return scale if scale is None or rows is None else scale.index_select(0, rows // tokens)
