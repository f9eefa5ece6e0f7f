"""window_attention on GPUs, windows of more than 64 tokens, forward pass: softmax over blocks of keys as they come.

The bias of all pairs is made beforehand, once with the mask of each pattern, and with minus infinity behind the last
key. It stays in the cache, since programs of one head run together, but reading it from there would take longer than
all else: so a program computes a block of queries in a window of two samples at once.
Source: Dao et al. 2022, algorithm 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from omnitrunk.kernels.window_attention.triton_map import (
    LOG2E,
    counts,
    load_padded,
    load_tile,
    locate,
    pattern,
    store_tile,
)


@triton.jit
def begin(
    window, place, tensors, sizes, size, WINDOW: tl.constexpr, SHIFT: tl.constexpr,
    QUERIES: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    # Rows of the queries, the queries, and the maximum, sum and mixture of no values.
    row, real = locate(window, place, size, WINDOW, SHIFT)
    real = real & (window < sizes[1])
    queries = load_tile(tensors[0], row, real, 3 * sizes[0], HEAD, WIDTH)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    return row, real, queries, (top, tl.zeros((QUERIES,), tl.float32), tl.zeros((QUERIES, WIDTH), tl.float32))


@triton.jit
def absorb(
    state, queries, bias, window, place, tensors, sizes, size, scale,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, TOKENS: tl.constexpr,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    # The same after one more block of keys.
    top, total, mixed = state
    qkv, padding = tensors
    part, windows = sizes
    row, real = locate(window, place, size, WINDOW, SHIFT)
    # A window that is not there has keys of padding: whatever comes out is not stored.
    real = real & (window < windows)
    keys = load_padded(qkv + part, padding + part, row, real, place, 3 * part, TOKENS, HEAD, WIDTH, PADDED)
    values = load_padded(qkv + 2 * part, padding + 2 * part, row, real, place, 3 * part, TOKENS, HEAD, WIDTH, PADDED)
    scores = tl.dot(queries, tl.trans(keys)) * (scale * LOG2E) + bias
    highest = tl.maximum(top, tl.max(scores, 1))
    weights, shrink = tl.exp2(scores - highest[:, None]), tl.exp2(top - highest)
    mixed = tl.dot(weights.to(values.dtype), values, mixed * shrink[:, None])
    return highest, total * shrink + tl.sum(weights, 1), mixed


@triton.jit
def finish(state, out, lse, row, real, part, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    top, total, mixed = state
    store_tile(out, mixed / total[:, None], row, real, part, HEAD, WIDTH)
    tl.store(lse + row, top + tl.log2(total), mask=real)


@triton.jit
def long_forward_kernel(
    qkv, bias, padding, out, lse, windows, heads, time, height, width, tokens, scale,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, TOKENS: tl.constexpr, PADDED_TOKENS: tl.constexpr,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PADDED: tl.constexpr, PAIRS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = (TOKENS + QUERIES - 1) // QUERIES
    size, sizes = (time, height, width), (heads * HEAD, windows)
    deep, down, across = counts(size, WINDOW)
    number = deep * down * across
    item, place = tl.program_id(0) // tiles, tl.program_id(0) % tiles * QUERIES + tl.arange(0, QUERIES)
    items = tl.num_programs(0) // tiles // heads
    first, head = item % items, item // items
    if PAIRS:
        first += first // number * number
    tensors = qkv + head * HEAD, padding + head * HEAD
    stripe = pattern(first, size, WINDOW, SHIFT) * heads + head
    bias += (stripe * PADDED_TOKENS + place).to(tl.int64)[:, None] * PADDED_TOKENS
    row, real, queries, state = begin(first, place, tensors, sizes, size, WINDOW, SHIFT, QUERIES, HEAD, WIDTH)
    if PAIRS:
        second = first + number
        row_2, real_2, queries_2, state_2 = begin(
            second, place, tensors, sizes, size, WINDOW, SHIFT, QUERIES, HEAD, WIDTH
        )
    for block in tl.range(0, TOKENS, KEYS, num_stages=STAGES):
        key = block + tl.arange(0, KEYS)
        added = tl.load(bias + key[None, :]).to(tl.float32)
        state = absorb(
            state, queries, added, first, key, tensors, sizes, size, scale,
            WINDOW, SHIFT, TOKENS, HEAD, WIDTH, PADDED,
        )  # fmt: skip
        if PAIRS:
            state_2 = absorb(
                state_2, queries_2, added, second, key, tensors, sizes, size, scale,
                WINDOW, SHIFT, TOKENS, HEAD, WIDTH, PADDED,
            )  # fmt: skip
    out, lse = out + head * HEAD, lse + head.to(tl.int64) * tokens
    finish(state, out, lse, row, real, sizes[0], HEAD, WIDTH)
    if PAIRS:
        finish(state_2, out, lse, row_2, real_2, sizes[0], HEAD, WIDTH)
