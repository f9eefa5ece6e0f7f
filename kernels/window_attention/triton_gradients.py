"""window_attention on GPUs, windows of more than 64 tokens, backward pass.

Three kernels, each of which owns what it sums, so that nothing is added atomically: a block of queries (its gradient,
and delta = rowsum(do out) for the others), a block of keys, a block of pairs over all windows (the gradient of the
bias). All compute their weights again from the logarithms of the sums.
Source: Dao et al. 2022, appendix B.
"""

from __future__ import annotations

import triton
import triton.language as tl

from omnitrunk.kernels.window_attention.triton_map import (
    LOG2E,
    load_padded,
    load_tile,
    locate,
    pattern,
    store_padded,
    store_tile,
)


@triton.jit
def query_gradient_kernel(
    qkv, bias, padding, out, grad, lse, delta, grad_qkv, windows, heads, time, height, width, tokens, scale,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, TOKENS: tl.constexpr, PADDED_TOKENS: tl.constexpr,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PADDED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = (TOKENS + QUERIES - 1) // QUERIES
    item, start = tl.program_id(0) // tiles, tl.program_id(0) % tiles * QUERIES
    window, head = item % windows, item // windows
    size, part, place = (time, height, width), heads * HEAD, start + tl.arange(0, QUERIES)
    qkv, padding = qkv + head * HEAD, padding + head * HEAD
    row, real = locate(window, place, size, WINDOW, SHIFT)
    queries = load_tile(qkv, row, real, 3 * part, HEAD, WIDTH)
    grad_out = load_tile(grad + head * HEAD, row, real, part, HEAD, WIDTH)
    mixed = load_tile(out + head * HEAD, row, real, part, HEAD, WIDTH)
    along = tl.sum(grad_out.to(tl.float32) * mixed.to(tl.float32), 1)
    statistic = head.to(tl.int64) * tokens + row
    tl.store(delta + statistic, along, mask=real)
    summed = tl.load(lse + statistic, mask=real, other=float("inf"))
    stripe = pattern(window, size, WINDOW, SHIFT) * heads + head
    bias += (stripe * PADDED_TOKENS + place).to(tl.int64)[:, None] * PADDED_TOKENS
    total = tl.zeros((QUERIES, WIDTH), tl.float32)
    for block in tl.range(0, TOKENS, KEYS, num_stages=STAGES):
        key = block + tl.arange(0, KEYS)
        row_k, real_k = locate(window, key, size, WINDOW, SHIFT)
        keys = load_padded(qkv + part, padding + part, row_k, real_k, key, 3 * part, TOKENS, HEAD, WIDTH, PADDED)
        values = load_padded(
            qkv + 2 * part, padding + 2 * part, row_k, real_k, key, 3 * part, TOKENS, HEAD, WIDTH, PADDED
        )
        scores = tl.dot(queries, tl.trans(keys)) * (scale * LOG2E) + tl.load(bias + key[None, :]).to(tl.float32)
        weights = tl.exp2(scores - summed[:, None])
        grad_scores = weights * (tl.dot(grad_out, tl.trans(values)) - along[:, None])
        total = tl.dot(grad_scores.to(keys.dtype), keys, total)
    store_tile(grad_qkv + head * HEAD, total * scale, row, real, 3 * part, HEAD, WIDTH)


@triton.jit
def key_gradient_kernel(
    qkv, transposed, padding, grad, lse, delta, grad_qkv, grad_padding,
    windows, heads, time, height, width, tokens, scale,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, TOKENS: tl.constexpr, PADDED_TOKENS: tl.constexpr,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PADDED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # Scores are computed transposed, a row per key, so that the weights are laid out as first operands of products.
    tiles: tl.constexpr = (TOKENS + KEYS - 1) // KEYS
    item, start = tl.program_id(0) // tiles, tl.program_id(0) % tiles * KEYS
    window, head = item % windows, item // windows
    size, part, place = (time, height, width), heads * HEAD, start + tl.arange(0, KEYS)
    qkv, padding, grad = qkv + head * HEAD, padding + head * HEAD, grad + head * HEAD
    row, real = locate(window, place, size, WINDOW, SHIFT)
    keys = load_padded(qkv + part, padding + part, row, real, place, 3 * part, TOKENS, HEAD, WIDTH, PADDED)
    values = load_padded(qkv + 2 * part, padding + 2 * part, row, real, place, 3 * part, TOKENS, HEAD, WIDTH, PADDED)
    stripe = pattern(window, size, WINDOW, SHIFT) * heads + head
    transposed += (stripe * PADDED_TOKENS + place).to(tl.int64)[:, None] * PADDED_TOKENS
    lse, delta = lse + head.to(tl.int64) * tokens, delta + head.to(tl.int64) * tokens
    total_k = tl.zeros((KEYS, WIDTH), tl.float32)
    total_v = tl.zeros((KEYS, WIDTH), tl.float32)
    for block in tl.range(0, TOKENS, QUERIES, num_stages=STAGES):
        query = block + tl.arange(0, QUERIES)
        row_q, real_q = locate(window, query, size, WINDOW, SHIFT)
        queries = load_tile(qkv, row_q, real_q, 3 * part, HEAD, WIDTH)
        grad_out = load_tile(grad, row_q, real_q, part, HEAD, WIDTH)
        summed = tl.load(lse + row_q, mask=real_q, other=float("inf"))
        along = tl.load(delta + row_q, mask=real_q, other=0.0)
        scores = tl.dot(keys, tl.trans(queries)) * (scale * LOG2E)
        scores += tl.load(transposed + query[None, :]).to(tl.float32)
        weights = tl.exp2(scores - summed[None, :])
        total_v = tl.dot(weights.to(grad_out.dtype), grad_out, total_v)
        grad_scores = weights * (tl.dot(values, tl.trans(grad_out)) - along[None, :])
        total_k = tl.dot(grad_scores.to(queries.dtype), queries, total_k)
    grad_qkv, grad_padding = grad_qkv + head * HEAD + part, grad_padding + head * HEAD
    store_padded(grad_qkv, grad_padding, total_k * scale, row, real, window, place, size, 3 * part, 2 * part,
                 WINDOW, SHIFT, HEAD, WIDTH, PADDED)  # fmt: skip
    store_padded(grad_qkv + part, grad_padding + part, total_v, row, real, window, place, size, 3 * part, 2 * part,
                 WINDOW, SHIFT, HEAD, WIDTH, PADDED)  # fmt: skip


@triton.jit
def bias_gradient_kernel(
    qkv, bias, padding, grad, lse, delta, grad_bias, windows, heads, time, height, width, tokens, scale,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, TOKENS: tl.constexpr, PADDED_TOKENS: tl.constexpr,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PADDED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # The sum over every num_programs(1)-th window.
    across: tl.constexpr = (TOKENS + KEYS - 1) // KEYS
    tiles: tl.constexpr = (TOKENS + QUERIES - 1) // QUERIES * across
    head, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    query, key = tile // across * QUERIES + tl.arange(0, QUERIES), tile % across * KEYS + tl.arange(0, KEYS)
    size, part = (time, height, width), heads * HEAD
    qkv, padding, grad = qkv + head * HEAD, padding + head * HEAD, grad + head * HEAD
    lse, delta = lse + head.to(tl.int64) * tokens, delta + head.to(tl.int64) * tokens
    pair = query[:, None] * PADDED_TOKENS + key[None, :]
    total = tl.zeros((QUERIES, KEYS), tl.float32)
    for window in tl.range(tl.program_id(1), windows, tl.num_programs(1), num_stages=STAGES):
        stripe = (pattern(window, size, WINDOW, SHIFT) * heads + head).to(tl.int64)
        row, real = locate(window, query, size, WINDOW, SHIFT)
        row_k, real_k = locate(window, key, size, WINDOW, SHIFT)
        queries = load_tile(qkv, row, real, 3 * part, HEAD, WIDTH)
        grad_out = load_tile(grad, row, real, part, HEAD, WIDTH)
        keys = load_padded(qkv + part, padding + part, row_k, real_k, key, 3 * part, TOKENS, HEAD, WIDTH, PADDED)
        values = load_padded(
            qkv + 2 * part, padding + 2 * part, row_k, real_k, key, 3 * part, TOKENS, HEAD, WIDTH, PADDED
        )
        summed = tl.load(lse + row, mask=real, other=float("inf"))
        along = tl.load(delta + row, mask=real, other=0.0)
        scores = tl.dot(queries, tl.trans(keys)) * (scale * LOG2E)
        scores += tl.load(bias + stripe * PADDED_TOKENS * PADDED_TOKENS + pair).to(tl.float32)
        weights = tl.exp2(scores - summed[:, None])
        total += weights * (tl.dot(grad_out, tl.trans(values)) - along[:, None])
    share = (tl.program_id(1) * heads + head).to(tl.int64) * PADDED_TOKENS * PADDED_TOKENS
    tl.store(grad_bias + share + pair, total)
