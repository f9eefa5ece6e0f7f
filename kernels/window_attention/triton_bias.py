"""window_attention on GPUs: from the table of biases to the bias of every pair of places, and back.

The row of the table is linear in the places: along(query) - along(key) + center. So there is no index tensor, and the
gradient of a row is a sum over queries, each of which has one key at most at that offset: nothing is added atomically.
"""

from __future__ import annotations

import triton
import triton.language as tl

from omnitrunk.kernels.window_attention.triton_map import LOG2E, masked


@triton.jit
def along(place, GRID: tl.constexpr, TABLE: tl.constexpr):
    # The part of a place in the row of the table.
    step: tl.constexpr = 2 * TABLE[2] - 1
    time = place // (GRID[1] * GRID[2]) * ((2 * TABLE[1] - 1) * step)
    return time + place // GRID[2] % GRID[1] * step + place % GRID[2]


@triton.jit
def bias_tile(table, head, heads, query, key, TOKENS: tl.constexpr, GRID: tl.constexpr, TABLE: tl.constexpr):
    # log2(e) times the bias of every query (rows) and key (columns), minus infinity where there is no key.
    center: tl.constexpr = ((2 * TABLE[0] - 1) * (2 * TABLE[1] - 1) * (2 * TABLE[2] - 1)) // 2
    row = along(query, GRID, TABLE)[:, None] - along(key, GRID, TABLE)[None, :] + center
    there = (query < TOKENS)[:, None] & (key < TOKENS)[None, :]
    bias = tl.load(table + row * heads + head, mask=there, other=0.0).to(tl.float32) * LOG2E
    return tl.where((key < TOKENS)[None, :], bias, float("-inf"))


@triton.jit
def expand_kernel(
    table, bias, transposed, heads,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, TOKENS: tl.constexpr, PADDED_TOKENS: tl.constexpr,
    GRID: tl.constexpr, TABLE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # Bias and mask of all pairs, (patterns, heads, PADDED_TOKENS, PADDED_TOKENS), and the transpose if it is wanted.
    item = tl.program_id(2)
    query, key = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.program_id(1) * TILE + tl.arange(0, TILE)
    value = bias_tile(table, item % heads, heads, query, key, TOKENS, GRID, TABLE)
    value = masked(value, query, key, item // heads, WINDOW, SHIFT).to(bias.dtype.element_ty)
    first = item.to(tl.int64) * PADDED_TOKENS * PADDED_TOKENS
    tl.store(bias + first + query[:, None] * PADDED_TOKENS + key[None, :], value)
    if transposed is not None:
        tl.store(transposed + first + key[:, None] * PADDED_TOKENS + query[None, :], tl.trans(value))


@triton.jit
def fold_kernel(
    grad_bias, grad_table, heads,
    TOKENS: tl.constexpr, PADDED_TOKENS: tl.constexpr, GRID: tl.constexpr, TABLE: tl.constexpr,
    ROWS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    # Gradients of pairs (heads, PADDED_TOKENS, PADDED_TOKENS) -> those of the table (rows, heads).
    head = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    step: tl.constexpr = 2 * TABLE[2] - 1
    area: tl.constexpr = (2 * TABLE[1] - 1) * step
    back_t, back_h, back_w = row // area - (TABLE[0] - 1), row // step % (2 * TABLE[1] - 1) - (TABLE[1] - 1), row % step
    grad_bias += head.to(tl.int64) * PADDED_TOKENS * PADDED_TOKENS
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, TOKENS, QUERIES):
        query = start + tl.arange(0, QUERIES)[None, :]
        t = query // (GRID[1] * GRID[2]) - back_t[:, None]
        h = query // GRID[2] % GRID[1] - back_h[:, None]
        w = query % GRID[2] - (back_w - (TABLE[2] - 1))[:, None]
        key = (t * GRID[1] + h) * GRID[2] + w
        there = (t >= 0) & (h >= 0) & (h < GRID[1]) & (w >= 0) & (w < GRID[2]) & (key < TOKENS) & (query < TOKENS)
        total += tl.sum(tl.load(grad_bias + query * PADDED_TOKENS + key, mask=there, other=0.0), 1)
    rows: tl.constexpr = (2 * TABLE[0] - 1) * area
    tl.store(grad_table + row * heads + head, total.to(grad_table.dtype.element_ty), mask=row < rows)
