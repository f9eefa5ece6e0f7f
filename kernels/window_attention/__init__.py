"""window_attention: attention inside the shifted windows of a video or image, with a bias per relative position.

    out = softmax(scale q k^T + bias[a(query) - a(key) + center] + mask) v     for every window and head

q, k and v are read from, and out is written to, the places that tokens have on the map: nothing is rolled, partitioned
or padded in memory. The row of the bias table is linear in the two positions, and the mask (-100 between tokens that
were not neighbors before the shift) follows from at most 8 patterns; windows.py has both. Where the map does not divide
into windows, it counts as padded at its far ends with tokens whose q, k and v are `padding`; these are attended to like
all others. Softmax runs in float32 or wider.
Backward, with P the softmax and dP = do v^T: ds = P (dP - rowsum(P dP)), dv = P^T do, dq = scale ds k,
dk = scale ds^T q, and each row of the table gets the sum of ds over all windows and all pairs at its offset.
Sources: Liu et al. 2021, section 3.2 (Swin); Liu et al. 2022, section 3.2 (Video Swin).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels import gpu
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.window_attention.windows import (
    MASKED,
    Triple,
    Windows,
    cut,
    index_map,
    inverse_map,
    patterns,
    relative_index,
    strangers,
)

__all__ = ["OPERATION", "Windows", "cost", "cut", "reference", "window_attention"]

WIDEST = 64
"""Widest head that the Triton kernels take."""


def cost(
    windows: Windows,
    batch: int,
    *,
    heads: int,
    head_width: int,
    bytes_per_element: int = 2,
    backward: bool = False,
) -> Cost:
    """Least work on a batch of maps cut into `windows`.

    Forward reads q, k, v and writes out; backward reads q, k, v, dout, computes the scores once more and writes three
    gradients. Two products of 2 d FLOP per pair forward, five backward, and one exponential each. The table is so small
    that it does not count.
    """
    rows = batch * math.prod(windows.size) * heads * head_width
    pairs = batch * windows.number * windows.tokens**2 * heads
    return Cost(
        bytes=(7 if backward else 4) * rows * bytes_per_element,
        flop=(10 if backward else 4) * pairs * head_width,
        exps=pairs,
    )


def _gathered(qkv: Tensor, padding: Tensor, index: Tensor, padded: bool) -> Tensor:
    """(B, T, H, W, 3, heads, d) -> (3, B, windows, heads, L, d), with `padding` (3, heads, d) where the map ends."""
    rows = qkv.flatten(1, 3)
    if padded:
        rows = torch.cat([rows, padding.to(rows.dtype).expand(len(rows), 1, *padding.shape)], 1)
    return rows.index_select(1, index.flatten()).unflatten(1, index.shape).permute(3, 0, 1, 4, 2, 5)


def _scattered(out: Tensor, index: Tensor, size: Sequence[int]) -> Tensor:
    """(B, windows, heads, L, d) -> (B, T, H, W, heads, d)."""
    rows = out.transpose(2, 3).flatten(1, 2)
    return rows.index_select(1, inverse_map(index, math.prod(size))).unflatten(1, tuple(size))


def reference(qkv: Tensor, bias_table: Tensor, padding: Tensor, windows: Windows, scale: float) -> Tensor:
    """The definition; `padding` (3, heads, d) and `windows` (see `cut`) as in the text of this module."""
    wide = torch.promote_types(qkv.dtype, torch.float32)
    index = index_map(windows, qkv.device)
    q, k, v = _gathered(qkv, padding, index, windows.padded).to(wide)
    bias = bias_table.to(wide)[relative_index(windows, qkv.device)].permute(2, 0, 1)
    mask = MASKED * strangers(windows, torch.tensor(patterns(windows), device=qkv.device)).to(wide)
    scores = scale * q @ k.transpose(-2, -1) + bias + mask[:, None]
    return _scattered((scores.softmax(-1) @ v).to(qkv.dtype), index, windows.size)


OPERATION = Operation("window_attention", reference)


def _triton_refuses(qkv: Tensor, _bias_table: Tensor, _padding: Tensor, _windows: Windows, _scale: float) -> str | None:
    dtype = qkv.dtype if qkv.dtype == torch.float64 else gpu.autocast_dtype(qkv) or qkv.dtype
    # In Triton's interpreter products of bfloat16 are wrong. On a GPU tiles of float32 do not fit into registers.
    other = "float32" if gpu.interpreted() else "bfloat16"
    if dtype not in (torch.float16, getattr(torch, other)):
        return f"computes in float16 or {other}"
    if qkv.shape[-1] % 16 or qkv.shape[-1] > WIDEST:
        return f"takes heads of a width that is a multiple of 16, up to {WIDEST}, not {qkv.shape[-1]}"
    return None


@OPERATION.backend(
    "triton",
    devices=gpu.DEVICES,
    why="moves no token, writes no score, and sums the gradient of the bias without atomics",
    missing=gpu.missing,
    refuses=_triton_refuses,
)
def _triton(qkv: Tensor, bias_table: Tensor, padding: Tensor, windows: Windows, scale: float) -> Tensor:
    from omnitrunk.kernels.window_attention import triton_attention

    return triton_attention.window_attention(qkv, bias_table, padding, windows, scale)


def _cpu_refuses(qkv: Tensor, bias_table: Tensor, padding: Tensor, _windows: Windows, _scale: float) -> str | None:
    single = qkv.dtype == bias_table.dtype == padding.dtype == torch.float32
    return "computes in float32" if torch.is_autocast_enabled("cpu") or not single else None


@OPERATION.backend("cpu", devices=("cpu",), why="a few windows at a time, in the cache", refuses=_cpu_refuses)
def _cpu(qkv: Tensor, bias_table: Tensor, padding: Tensor, windows: Windows, scale: float) -> Tensor:
    from omnitrunk.kernels.window_attention import cpu

    return cpu.window_attention(qkv, bias_table, padding, windows, scale)


@functools.lru_cache(maxsize=8)
def _layout(windows: Windows, device: torch.device) -> tuple[Tensor, Tensor, list[tuple[Tensor, int]]]:
    """Index map with windows sorted by pattern, index of biases; of each pattern who are strangers, and its windows."""
    found = patterns(windows)
    order = sorted(range(len(found)), key=found.__getitem__)
    groups = [
        (strangers(windows, torch.tensor(pattern, device=device)), len(list(group)))
        for pattern, group in groupby(sorted(found))
    ]
    return index_map(windows, device)[order], relative_index(windows, device), groups


@OPERATION.backend("sdpa", devices=("cpu", "cuda"), why="torch's fused attention, once for every pattern of the mask")
def _sdpa(qkv: Tensor, bias_table: Tensor, padding: Tensor, windows: Windows, scale: float) -> Tensor:
    # What a compiler sees must not be kept: it has tensors of its own.
    layout = _layout.__wrapped__ if torch.compiler.is_compiling() else _layout
    index, relative, groups = layout(windows, qkv.device)
    bias, outs, first = bias_table[relative].permute(2, 0, 1), [], 0
    for strange, count in groups:
        q, k, v = _gathered(qkv, padding, index[first : first + count], windows.padded).flatten(1, 2)
        added = (bias + MASKED * strange).to(gpu.autocast_dtype(q) or q.dtype)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)
        outs.append(out.unflatten(0, (len(qkv), count)))
        first += count
    return _scattered(torch.cat(outs, 1), index, windows.size)


def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    *,
    window: Sequence[int],
    shift: Sequence[int] = (0, 0, 0),
    scale: float | None = None,
    padding: Tensor | None = None,
    faithful: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Attention inside windows of a map, shifted or not: qkv (B, T, H, W, 3, heads, d) -> (B, T, H, W, heads, d).

    qkv is the output of a joint projection as it lies in memory, viewed. bias_table ((2 wt - 1)(2 wh - 1)(2 ww - 1),
    heads) belongs to the whole window (wt, wh, ww), whatever the size of the map. On an axis that is no longer than the
    window, the window is the axis and the shift 0; `faithful` says which biases such a window gets, see `cut`. padding
    (3, heads, d) is what q, k and v are outside of the map: the bias of the projection, as if zeros had been projected;
    zero if left out. scale is 1 / sqrt(d) unless given. Differentiable in qkv, bias_table and padding. Raises
    ValueError where shapes do not fit together.
    """
    window, shift = _checked(qkv, window, shift)
    windows = cut(tuple(qkv.shape[1:4]), window, shift, faithful)
    if bias_table.shape != (windows.table_rows, qkv.shape[5]):
        expected, found = (windows.table_rows, qkv.shape[5]), tuple(bias_table.shape)
        raise ValueError(f"window_attention: window {window} takes a bias_table {expected}, not {found}")
    padding = qkv.new_zeros(qkv.shape[4:]) if padding is None else padding
    if padding.shape != qkv.shape[4:]:
        expected, found = tuple(qkv.shape[4:]), tuple(padding.shape)
        raise ValueError(f"window_attention: padding must be {expected}, the bias of the projection, not {found}")
    if not qkv.numel():
        return qkv.select(4, 2) + 0 * (bias_table.sum() + padding.sum())
    return OPERATION.run(backend, qkv, bias_table, padding, windows, qkv.shape[-1] ** -0.5 if scale is None else scale)


def _checked(qkv: Tensor, window: Sequence[int], shift: Sequence[int]) -> tuple[Triple, Triple]:
    if qkv.dim() != 7 or qkv.shape[4] != 3:
        raise ValueError(f"window_attention takes qkv (B, T, H, W, 3, heads, d), not {tuple(qkv.shape)}; use unflatten")
    if len(window) != 3 or len(shift) != 3:
        raise ValueError("window_attention takes window and shift along time, height and width: 3 integers each")
    if not all(0 <= by < extent for by, extent in zip(shift, window, strict=True)):
        raise ValueError(f"window_attention: a shift must be in [0, window) on each axis, not {shift} for {window}")
    return tuple(window), tuple(shift)
