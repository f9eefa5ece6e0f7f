"""window_attention on CPUs: a few windows at a time, gathered and computed in the cache.

What is gathered are rows of single heads, in the order of the products, so that every product is of contiguous
matrices. Results stay in that order until the end and are then read in the order of the map, which is faster than to
write them there. Windows of one pattern are computed together and share bias plus mask. The weights P are kept for the
backward pass where they take no more memory than q, k and v, and computed again where they would take more. Padding is
one more token, the last.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from omnitrunk.kernels.library import operator
from omnitrunk.kernels.window_attention.windows import (
    MASKED,
    Windows,
    cut,
    index_map,
    inverse_map,
    patterns,
    relative_index,
    strangers,
)

SCORE_BYTES = 1 << 20
"""Scores computed at a time: about what a second-level cache holds."""
SMALLEST = math.log(torch.finfo(torch.float32).tiny)
"""The score, below the greatest of its query, whose weight is the smallest normal number."""


@functools.lru_cache(maxsize=64)
def _sorted_map(windows: Windows) -> tuple[Tensor, list[tuple[int, int]]]:
    """The index map with windows sorted by pattern, and how many windows each pattern has."""
    found = patterns(windows)
    order = sorted(range(len(found)), key=found.__getitem__)
    return index_map(windows)[order], [(pattern, len(list(group))) for pattern, group in groupby(sorted(found))]


@functools.lru_cache(maxsize=16)
def _relative_index(windows: Windows) -> Tensor:
    return relative_index(windows).flatten()


def _bias(bias_table: Tensor, windows: Windows) -> Tensor:
    """(heads, L, L)."""
    bias = bias_table.index_select(0, _relative_index(windows)).t().contiguous()
    return bias.view(-1, windows.tokens, windows.tokens)


def _tokens(windows: Windows, batch: int) -> Tensor:
    """The token of the batch at every place, the number of tokens standing for padding: (windows, B, L), flat to 2."""
    index, tokens = _sorted_map(windows)[0][:, None], math.prod(windows.size)
    token = torch.where(index < tokens, index + tokens * torch.arange(batch)[:, None], batch * tokens)
    return token.flatten(0, 1)


def _restored(x: Tensor, windows: Windows, batch: int) -> Tensor:
    """Matrices (parts, windows * B, heads, L, d) -> (B, T, H, W, parts, heads, d): where tokens are on the map."""
    parts, matrices, heads, tokens, width = x.shape
    place = inverse_map(_sorted_map(windows)[0], math.prod(windows.size))
    matrix = place // tokens * batch + torch.arange(batch)[:, None]
    matrix = matrix[..., None] + matrices * torch.arange(parts)
    row = (matrix[..., None] * heads + torch.arange(heads)) * tokens + (place % tokens)[:, None, None]
    return x.view(-1, width).index_select(0, row.flatten()).view(batch, *windows.size, parts, heads, width)


def _chunks(windows: Windows, batch: int, heads: int) -> Iterator[tuple[slice, slice]]:
    """Windows that are computed together, and heads of them: several windows with all heads, or heads of one."""
    fitting = max(1, SCORE_BYTES // (windows.tokens**2 * 4))
    step, last = max(1, fitting // heads), windows.number * batch
    for start in range(0, last, step):
        for head in range(0, heads, fitting):
            yield slice(start, min(start + step, last)), slice(head, head + fitting)


@functools.lru_cache(maxsize=8)
def _mask(windows: Windows, pattern: int) -> Tensor:
    """What is added to the scores in windows of a pattern: (L, L)."""
    return MASKED * strangers(windows, torch.tensor(pattern))


def _masks(windows: Windows, batch: int, at: slice) -> list[tuple[slice, Tensor]]:
    """The masks of windows `at`: which of these they are for, and what is added to their scores."""
    found, last = [], -at.start
    for pattern, count in _sorted_map(windows)[1]:
        first, last = last, last + count * batch
        if pattern and first < at.stop - at.start and last > 0:
            found.append((slice(max(first, 0), last), _mask(windows, pattern)))
    return found


def _rows(x: Tensor, padding: Tensor | None) -> Tensor:
    """(B, T, H, W, ..., d) -> (rows, d), those of the padding (zero if None) last where there is any."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if padding is None else torch.cat([rows, padding.view(-1, x.shape[-1])])


def _gathered(rows: Tensor, token: Tensor, part: Tensor) -> Tensor:
    """Tokens (n, L) and the parts (slices, heads) of their rows -> (slices, n * heads, L, d).

    Parts are numbered within a token; there are as many as `part` says at most, over all chunks.
    """
    places = (token[:, None] + part[:, None, :, None]).flatten()
    return rows.index_select(0, places).view(len(part), -1, token.shape[1], rows.shape[1])


def _matrices(x: Tensor, at: slice, of: slice) -> Tensor:
    """Those of a chunk, of all (windows * B, heads, rows, columns): (n, rows, columns), in place."""
    return x[at, of].view(-1, *x.shape[2:])


def _weights(
    q: Tensor, k: Tensor, bias: Tensor, masks: list[tuple[slice, Tensor]], scale: float, kept: Tensor | None
) -> Tensor:
    """P (n * heads, L, L) of q and k (n * heads, L, d), in the memory `kept` if there is any.

    Masked weights are around 1e-43. Such numbers, which float32 holds with few digits, slow processors down several
    times in all that follows: what is below the smallest normal number is made zero.
    """
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale)
    by_window = scores.view(-1, *bias.shape).add_(bias)
    for which, mask in masks:
        masked = by_window[which].add_(mask)
        masked.masked_fill_(masked < masked.amax(-1, keepdim=True) + SMALLEST, float("-inf"))
    # Not in place: in torch that takes twice as long.
    return torch.softmax(scores, -1, out=kept)


def _forward_shapes(
    qkv: Tensor, bias_table: Tensor, padding: Tensor,
    window: list[int], shift: list[int], faithful: bool, scale: float, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, *size, _, heads, width = qkv.shape
    windows = cut(tuple(size), tuple(window), tuple(shift), faithful)
    matrices = windows.number * batch if keep else 0
    kept = qkv.new_empty(matrices, heads, windows.tokens, windows.tokens)
    return qkv.new_empty(batch, *size, heads, width), kept


@operator(fake=_forward_shapes)
def window_attention_cpu_forward(
    qkv: Tensor, bias_table: Tensor, padding: Tensor,
    window: list[int], shift: list[int], faithful: bool, scale: float, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output, and P (windows * B, heads, L, L) if it is to be kept."""
    batch, *size, _, heads, width = qkv.shape
    windows = cut(tuple(size), tuple(window), tuple(shift), faithful)
    rows, token = _rows(qkv, padding if windows.padded else None), _tokens(windows, batch)
    part = torch.arange(3 * heads).view(3, heads)
    out = qkv.new_empty(len(token), heads, windows.tokens, width)
    kept = qkv.new_empty(len(token) if keep else 0, heads, windows.tokens, windows.tokens)
    bias = _bias(bias_table, windows)
    for at, of in _chunks(windows, batch, heads):
        q, k, v = _gathered(rows, token[at] * (3 * heads), part[:, of])
        masks = _masks(windows, batch, at)
        weights = _weights(q, k, bias[of], masks, scale, _matrices(kept, at, of) if keep else None)
        torch.bmm(weights, v, out=_matrices(out, at, of))
    return _restored(out[None], windows, batch).squeeze(4), kept


def _backward_shapes(
    grad: Tensor, kept: Tensor, qkv: Tensor, bias_table: Tensor, padding: Tensor,
    window: list[int], shift: list[int], faithful: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return tuple(x.new_empty(x.shape) for x in (qkv, bias_table, padding))


@operator(fake=_backward_shapes)
def window_attention_cpu_backward(
    grad: Tensor, kept: Tensor, qkv: Tensor, bias_table: Tensor, padding: Tensor,
    window: list[int], shift: list[int], faithful: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of qkv, the table and the padding from `grad`, that of the output."""
    batch, *size, heads, width = grad.shape
    windows = cut(tuple(size), tuple(window), tuple(shift), faithful)
    rows, token = _rows(qkv, padding if windows.padded else None), _tokens(windows, batch)
    grad_rows = _rows(grad, torch.zeros_like(padding[0]) if windows.padded else None)
    part = torch.arange(3 * heads).view(3, heads)
    grads = qkv.new_empty(3, len(token), heads, windows.tokens, width)
    bias = _bias(bias_table, windows)
    grad_bias = torch.zeros_like(bias)
    for at, of in _chunks(windows, batch, heads):
        q, k, v = _gathered(rows, token[at] * (3 * heads), part[:, of])
        (grad_mixed,) = _gathered(grad_rows, token[at] * heads, part[:1, of])
        grad_q, grad_k, grad_v = (_matrices(x, at, of) for x in grads)
        if len(kept):
            weights = _matrices(kept, at, of)
        else:
            weights = _weights(q, k, bias[of], _masks(windows, batch, at), scale, None)
        torch.bmm(weights.transpose(1, 2), grad_mixed, out=grad_v)
        grad_scores = torch._softmax_backward_data(grad_mixed @ v.transpose(1, 2), weights, -1, weights.dtype)
        grad_bias[of] += grad_scores.view(-1, *bias[of].shape).sum(0)
        torch.baddbmm(grad_q, grad_scores, k, beta=0, alpha=scale, out=grad_q)
        torch.baddbmm(grad_k, grad_scores.transpose(1, 2), q, beta=0, alpha=scale, out=grad_k)
    grad_table = bias_table.new_zeros(heads, windows.table_rows)
    grad_table.index_add_(1, _relative_index(windows), grad_bias.flatten(1))
    outside = grads.transpose(2, 3)[:, token == batch * math.prod(size)].sum(1)
    return _restored(grads, windows, batch), grad_table.t().contiguous(), outside


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias_table: Tensor, padding: Tensor, windows: Windows, scale: float) -> Tensor:
        ctx.call = list(windows.table_window), list(windows.shift), windows.faithful, scale
        keep = any(ctx.needs_input_grad) and windows.tokens <= 3 * qkv.shape[-1]
        out, kept = window_attention_cpu_forward(qkv, bias_table, padding, *ctx.call, keep)
        ctx.save_for_backward(kept, qkv, bias_table, padding)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *window_attention_cpu_backward(grad, *ctx.saved_tensors, *ctx.call), None, None


def window_attention(qkv: Tensor, bias_table: Tensor, padding: Tensor, windows: Windows, scale: float) -> Tensor:
    """The operation on float32 tensors; see omnitrunk.kernels.window_attention."""
    return _WindowAttention.apply(qkv, bias_table, padding, windows, scale)
