"""The ordinary building blocks of the plain peer: eager PyTorch, one module for each textbook box.

Shapes: B batch, N query tokens, S context tokens, D width, H heads, d = D / H. Module and parameter names are those of
the published MultiMAE checkpoints (and of timm), so that their state dicts load as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTIONS = ("eager", "sdpa")


def attend(query: Tensor, key: Tensor, value: Tensor, attention: str) -> Tensor:
    """Softmax attention of (B, H, N, d) on (B, H, S, d); "eager" writes the (B, H, N, S) matrix, "sdpa" does not."""
    if attention == "sdpa":
        return F.scaled_dot_product_attention(query, key, value)
    scores = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
    return scores.softmax(dim=-1) @ value


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Self-attention with one fused qkv projection; its rows are ordered q, k, v, then head, then head dimension."""

    def __init__(self, width: int, heads: int, attention: str) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(merge_heads(attend(query, key, value, self.attention)))


class CrossAttention(nn.Module):
    """Attention of queries on another sequence: a q projection and a fused kv projection."""

    def __init__(self, width: int, heads: int, attention: str) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Queries (B, N, D) and context (B, S, D) -> (B, N, D)."""
        query = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(merge_heads(attend(query, key, value, self.attention)))


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block, LayerNorm epsilon 1e-6, no LayerScale (Dosovitskiy et al. 2021, section 3.1)."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, attention: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, attention)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_ratio * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def sincos_table(width: int, grid: tuple[int, int]) -> Tensor:
    """The fixed 2-D sine-cosine table (1, width, rows, columns) of the released MultiMAE, float32.

    It is built column by column but read row by row: on a grid that is not square, the two coordinates are scrambled.
    """
    rows, columns = grid
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float32) / (width // 4))
    flat = torch.arange(rows * columns)
    first = (flat // rows)[:, None] * frequencies
    second = (flat % rows)[:, None] * frequencies
    table = torch.cat([first.sin(), first.cos(), second.sin(), second.cos()], dim=1)
    return table.T.reshape(1, width, rows, columns)


def frozen_positions(width: int, grid: tuple[int, int]) -> nn.Parameter:
    """The table of `sincos_table` as a parameter that takes no gradient, the way checkpoints store it."""
    return nn.Parameter(sincos_table(width, grid), requires_grad=False)


def resized_positions(table: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """(1, width, r, c) -> (1, rows * columns, width): interpolated on every call, also when the grid already fits."""
    resized = F.interpolate(table, size=grid, mode=mode, align_corners=False)
    return resized.flatten(2).transpose(1, 2)


def gather_rows(tokens: Tensor, ids: Tensor) -> Tensor:
    """Tokens (B, N, D) at ids (B, K) -> (B, K, D), with the index expanded over the width as `torch.gather` wants."""
    return torch.gather(tokens, 1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def initialize(model: nn.Module) -> None:
    """Initial weights of the release: Xavier-uniform, q, k and v as matrices of their own, tokens normal with 0.02."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            parts = 3 if name.endswith("qkv") else 2 if name.endswith("kv") else 1
            bound = (6 / (module.out_features / parts + module.in_features)) ** 0.5
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02)
    for name, parameter in model.named_parameters():
        if name == "global_tokens" or "task_embeddings" in name:
            nn.init.trunc_normal_(parameter, std=0.02)
