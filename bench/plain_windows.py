"""Shifted-window attention as in textbooks: pad, roll, partition, add bias and mask, softmax, and all the way back.

The peer of omnitrunk.kernels.window_attention, which gives the same without moving a token. Each box is written from
its formula and not from that module, so that the two can be compared.
Sources: Liu et al. 2021, section 3.2 (Swin); Liu et al. 2022, section 3.2 (Video Swin).
"""

from __future__ import annotations

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

Triple = tuple[int, int, int]
ATTENTIONS = ("eager", "sdpa")
MASKED = -100.0


def clip(size: Triple, window: Triple, shift: Triple) -> tuple[Triple, Triple]:
    """Window and shift for a map: axes that one window covers are not shifted."""
    for axis in range(3):
        if size[axis] <= window[axis]:
            window = (*window[:axis], size[axis], *window[axis + 1 :])
            shift = (*shift[:axis], 0, *shift[axis + 1 :])
    return window, shift


def partition(x: Tensor, window: Triple) -> Tensor:
    """(B, T, H, W, ...) -> (B * windows, L, ...)."""
    batch, time, height, width, *rest = x.shape
    t, h, w = window
    x = x.reshape(batch, time // t, t, height // h, h, width // w, w, *rest)
    order = (0, 1, 3, 5, 2, 4, 6, *range(7, x.dim()))
    return x.permute(order).reshape(-1, t * h * w, *rest)


def merge(x: Tensor, window: Triple, size: Triple) -> Tensor:
    """(B * windows, L, ...) -> (B, T, H, W, ...), the inverse of `partition`."""
    rest = x.shape[2:]
    counts = [extent // step for extent, step in zip(size, window, strict=True)]
    x = x.reshape(-1, *counts, *window, *rest)
    order = (0, 1, 4, 2, 5, 3, 6, *range(7, x.dim()))
    return x.permute(order).reshape(-1, *size, *rest)


@functools.cache
def relative_index(window: Triple) -> Tensor:
    """Row of the table for each pair of tokens of a whole window, int64 (L, L)."""
    points = list(itertools.product(*(range(extent) for extent in window)))
    t, h, w = window
    rows = [
        [((a - d + t - 1) * (2 * h - 1) + b - e + h - 1) * (2 * w - 1) + c - f + w - 1 for d, e, f in points]
        for a, b, c in points
    ]
    return torch.tensor(rows)


@functools.cache
def shift_mask(size: Triple, window: Triple, shift: Triple) -> Tensor:
    """What is added to scores in every window of a rolled map: 0, or -100 between regions; (windows, L, L)."""
    region = torch.zeros(1, *size)
    slices = [
        (slice(0, -extent), slice(-extent, -by), slice(-by, None)) if by else (slice(None),)
        for extent, by in zip(window, shift, strict=True)
    ]
    for number, (t, h, w) in enumerate(itertools.product(*slices)):
        region[:, t, h, w] = number
    region = partition(region, window)
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, MASKED)


def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    window: Triple,
    shift: Triple,
    scale: float,
    padding: Tensor | None = None,
    attention: str = "eager",
) -> Tensor:
    """Attention in windows of a map: qkv (B, T, H, W, 3, heads, d) -> (B, T, H, W, heads, d).

    `padding` (3, heads, d), the bias of the projection, is what q, k and v are where the map is padded with zeros.
    "eager" writes out the scores, "sdpa" hands bias and mask to PyTorch's fused attention.
    """
    whole, size = window, tuple(qkv.shape[1:4])
    window, shift = clip(size, window, shift)
    padded = tuple(-(-extent // step) * step for extent, step in zip(size, window, strict=True))
    if padded != size:
        fill = qkv.new_zeros(qkv.shape[4:]) if padding is None else padding
        canvas = fill.expand(len(qkv), *padded, *fill.shape).clone()
        canvas[:, : size[0], : size[1], : size[2]] = qkv
        qkv = canvas
    if any(shift):
        qkv = torch.roll(qkv, [-by for by in shift], (1, 2, 3))
    q, k, v = partition(qkv, window).permute(2, 0, 3, 1, 4)
    tokens = q.shape[2]
    index = relative_index(whole)[:tokens, :tokens].to(qkv.device)
    bias = bias_table[index.reshape(-1)].view(tokens, tokens, -1).permute(2, 0, 1).unsqueeze(0)
    if any(shift):
        mask = shift_mask(padded, window, shift).to(qkv.device, qkv.dtype)
        bias = (bias + mask[:, None]).repeat(len(qkv), 1, 1, 1) if attention == "sdpa" else bias
    if attention == "sdpa":
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=scale)
    else:
        scores = (q * scale) @ k.transpose(-2, -1) + bias
        if any(shift):
            scores = (scores.unflatten(0, (len(qkv), -1)) + mask[None, :, None]).flatten(0, 1)
        mixed = scores.softmax(-1).to(v.dtype) @ v
    out = merge(mixed.transpose(1, 2), window, padded)
    if any(shift):
        out = torch.roll(out, shift, (1, 2, 3))
    return out[:, : size[0], : size[1], : size[2]].contiguous()
