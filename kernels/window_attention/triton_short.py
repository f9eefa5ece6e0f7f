"""window_attention on GPUs, windows of up to 64 tokens: the scores of a window are one tile.

A program walks over windows of one head, so that it reads the bias once, and sums its gradient in registers until the
end. Nothing is kept for the backward pass: it computes the weights again, exactly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from omnitrunk.kernels.window_attention.triton_bias import bias_tile
from omnitrunk.kernels.window_attention.triton_map import (
    LOG2E,
    load_padded,
    load_tile,
    locate,
    masked,
    pattern,
    store_padded,
    store_tile,
)


@triton.jit
def window_weights(queries, keys, bias, place, window, size, scale, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    # exp2 of the scores below their maximum, and the inverse of the sums.
    scores = tl.dot(queries, tl.trans(keys)) * (scale * LOG2E) + bias
    if SHIFT[0] + SHIFT[1] + SHIFT[2] > 0:
        bits = pattern(window, size, WINDOW, SHIFT)
        if bits > 0:
            scores = masked(scores, place, place, bits, WINDOW, SHIFT)
    weights = tl.exp2(scores - tl.max(scores, 1, keep_dims=True))
    return weights, 1.0 / tl.sum(weights, 1, keep_dims=True)


@triton.jit
def short_forward_kernel(
    qkv, table, padding, out, windows, heads, time, height, width, scale,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, GRID: tl.constexpr, TABLE: tl.constexpr, TOKENS: tl.constexpr,
    TILE: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    head, size, part = tl.program_id(0) % heads, (time, height, width), heads * HEAD
    place = tl.arange(0, TILE)
    bias = bias_tile(table, head, heads, place, place, TOKENS, GRID, TABLE)
    qkv, padding, out = qkv + head * HEAD, padding + head * HEAD, out + head * HEAD
    for window in tl.range(tl.program_id(0) // heads, windows, tl.num_programs(0) // heads, num_stages=STAGES):
        row, real = locate(window, place, size, WINDOW, SHIFT)
        queries = load_tile(qkv, row, real, 3 * part, HEAD, WIDTH)
        keys = load_padded(qkv + part, padding + part, row, real, place, 3 * part, TOKENS, HEAD, WIDTH, PADDED)
        values = load_padded(
            qkv + 2 * part, padding + 2 * part, row, real, place, 3 * part, TOKENS, HEAD, WIDTH, PADDED
        )
        weights, inverse = window_weights(queries, keys, bias, place, window, size, scale, WINDOW, SHIFT)
        mixed = tl.dot(weights.to(values.dtype), values) * inverse
        store_tile(out, mixed, row, real, part, HEAD, WIDTH)


@triton.jit
def short_backward_kernel(
    qkv, table, padding, grad, grad_qkv, grad_padding, grad_bias, windows, heads, time, height, width, scale,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, GRID: tl.constexpr, TABLE: tl.constexpr, TOKENS: tl.constexpr,
    TILE: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    head, size, part = tl.program_id(0) % heads, (time, height, width), heads * HEAD
    place = tl.arange(0, TILE)
    bias = bias_tile(table, head, heads, place, place, TOKENS, GRID, TABLE)
    total = tl.zeros((TILE, TILE), tl.float32)
    qkv, padding, grad = qkv + head * HEAD, padding + head * HEAD, grad + head * HEAD
    grad_qkv, grad_padding = grad_qkv + head * HEAD, grad_padding + head * HEAD
    for window in tl.range(tl.program_id(0) // heads, windows, tl.num_programs(0) // heads, num_stages=STAGES):
        row, real = locate(window, place, size, WINDOW, SHIFT)
        queries = load_tile(qkv, row, real, 3 * part, HEAD, WIDTH)
        keys = load_padded(qkv + part, padding + part, row, real, place, 3 * part, TOKENS, HEAD, WIDTH, PADDED)
        values = load_padded(
            qkv + 2 * part, padding + 2 * part, row, real, place, 3 * part, TOKENS, HEAD, WIDTH, PADDED
        )
        grad_out = load_tile(grad, row, real, part, HEAD, WIDTH)
        weights, inverse = window_weights(queries, keys, bias, place, window, size, scale, WINDOW, SHIFT)
        weights *= inverse
        grad_values = tl.dot(tl.trans(weights.to(grad_out.dtype)), grad_out)
        store_padded(
            grad_qkv + 2 * part, grad_padding + part, grad_values, row, real, window, place, size, 3 * part, 2 * part,
            WINDOW, SHIFT, HEAD, WIDTH, PADDED,
        )  # fmt: skip
        grad_weights = tl.dot(grad_out, tl.trans(values))
        grad_scores = weights * (grad_weights - tl.sum(weights * grad_weights, 1, keep_dims=True))
        total += grad_scores
        grad_scores = grad_scores.to(keys.dtype)
        grad_keys = tl.dot(tl.trans(grad_scores), queries) * scale
        store_padded(
            grad_qkv + part, grad_padding, grad_keys, row, real, window, place, size, 3 * part, 2 * part,
            WINDOW, SHIFT, HEAD, WIDTH, PADDED,
        )  # fmt: skip
        store_tile(grad_qkv, tl.dot(grad_scores, keys) * scale, row, real, 3 * part, HEAD, WIDTH)
    share = grad_bias + tl.program_id(0).to(tl.int64) * TILE * TILE
    tl.store(share + place[:, None] * TILE + place[None, :], total)
