"""attention on GPUs, all keys of a sequence on chip: what the kernels share, forward pass, short backward pass.

Up to 128 queries and keys the scores of a head are one tile. No running softmax is needed, and nothing but q, k and v
is kept for the backward pass: it computes the weights P again, exactly, and from them rowsum(P dP), so that neither the
output nor the logarithm of a sum is stored or read. Every tensor crosses memory once: 4 passes forward, 7 backward.
Sequences of one length are addressed through strides, ragged ones through cu_seqlens. Very short ones of one length
share a tile, PACK at a time, under a block-diagonal mask.
A kernel's programs serve one tile each, or, PERSISTENT, walk over all tiles and load the next during the current one.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def span(cu_seqlens, first, sequences, length, PACK: tl.constexpr):
    # Where a tile's sequences begin, in units of the sequence stride, and how many rows they have together.
    if cu_seqlens is None:
        begin, rows = first, tl.minimum(PACK, sequences - first) * length
    else:
        begin = tl.load(cu_seqlens + first)
        rows = tl.load(cu_seqlens + first + 1) - begin
    return begin.to(tl.int64), rows


@triton.jit
def places(tensor, strides, begin, start, head, row, length, PACK: tl.constexpr, WIDTH: tl.constexpr):
    # Addresses (rows, WIDTH) of a tile that starts at a row of the sequence `begin`. It may start anywhere in memory,
    # hence int64; the launcher sees to it that its rows lie within 2^31 elements.
    sequence_stride, row_stride, head_stride = strides
    tensor += begin * sequence_stride + tl.cast(start, tl.int64) * row_stride + head.to(tl.int64) * head_stride
    offset = row * row_stride if PACK == 1 else row // length * sequence_stride + row % length * row_stride
    return tensor + (offset[:, None] + tl.arange(0, WIDTH)[None, :])


@triton.jit
def within(row, rows, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    # The part of a tile (rows, WIDTH) that is there.
    inside = (row < rows)[:, None]
    return inside if HEAD == WIDTH else inside & (tl.arange(0, WIDTH) < HEAD)[None, :]


@triton.jit
def load_tile(
    tensor, strides, begin, start, head, row, rows, length,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, PACK: tl.constexpr = 1,
):  # fmt: skip
    # Rows of one head as a tile (rows, WIDTH), zero where there is nothing.
    place = places(tensor, strides, begin, start, head, row, length, PACK, WIDTH)
    return tl.load(place, mask=within(row, rows - start, HEAD, WIDTH), other=0.0)


@triton.jit
def store_tile(
    tensor, value, strides, begin, start, head, row, rows, length,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, PACK: tl.constexpr = 1,
):  # fmt: skip
    place = places(tensor, strides, begin, start, head, row, length, PACK, WIDTH)
    tl.store(place, value.to(tensor.dtype.element_ty), mask=within(row, rows - start, HEAD, WIDTH))


@triton.jit
def visible(row, column, columns, length_q, length_k, PACK: tl.constexpr):
    # Which keys (columns) a query (row) sees.
    seen = (column < columns)[None, :]
    return seen if PACK == 1 else seen & ((row // length_q)[:, None] == (column // length_k)[None, :])


@triton.jit
def exponentials(scores, seen, axis: tl.constexpr):
    # exp2 of the scores below their maximum, and the inverse of the sums; 0, never NaN, where no key is seen.
    scores = tl.where(seen, scores, float("-inf"))
    top = tl.max(scores, axis, keep_dims=True)
    weights = tl.exp2(scores - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(weights, axis, keep_dims=True)
    return weights, 1.0 / tl.where(total == 0.0, 1.0, total)


@triton.jit
def forward_tile(
    program, tensors, cu_seqlens, sizes, scale, strides,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    q, k, v, out = tensors
    sequences, heads, tiles, length_q, length_k = sizes
    item, start = program // tiles, program % tiles * QUERIES
    first, head = item // heads * PACK, item % heads
    begin_q, rows = span(cu_seqlens[0], first, sequences, length_q, PACK)
    begin_k, columns = span(cu_seqlens[1], first, sequences, length_k, PACK)
    row, column = tl.arange(0, QUERIES), tl.arange(0, KEYS)
    queries = load_tile(q, strides[0], begin_q, start, head, row, rows, length_q, HEAD, WIDTH, PACK)
    keys = load_tile(k, strides[1], begin_k, 0, head, column, columns, length_k, HEAD, WIDTH, PACK)
    values = load_tile(v, strides[2], begin_k, 0, head, column, columns, length_k, HEAD, WIDTH, PACK)
    scores = tl.dot(queries, tl.trans(keys)) * scale
    weights, inverse = exponentials(scores, visible(row, column, columns, length_q, length_k, PACK), 1)
    mixed = tl.dot(weights.to(values.dtype), values) * inverse
    store_tile(out, mixed, strides[3], begin_q, start, head, row, rows, length_q, HEAD, WIDTH, PACK)


@triton.jit
def forward_kernel(
    q, k, v, out, cu_seqlens_q, cu_seqlens_k,
    programs, sequences, heads, tiles, length_q, length_k, scale,
    q_sequence, q_row, q_head, k_sequence, k_row, k_head, v_sequence, v_row, v_head, out_sequence, out_row, out_head,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PACK: tl.constexpr,
    PERSISTENT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tensors, cu_seqlens = (q, k, v, out), (cu_seqlens_q, cu_seqlens_k)
    sizes = sequences, heads, tiles, length_q, length_k
    strides = (
        (q_sequence, q_row, q_head), (k_sequence, k_row, k_head), (v_sequence, v_row, v_head),
        (out_sequence, out_row, out_head),
    )  # fmt: skip
    first = tl.program_id(0)
    if PERSISTENT:
        for program in tl.range(first, programs, tl.num_programs(0), num_stages=STAGES):
            forward_tile(program, tensors, cu_seqlens, sizes, scale, strides, HEAD, WIDTH, QUERIES, KEYS, PACK)
    else:
        forward_tile(first, tensors, cu_seqlens, sizes, scale, strides, HEAD, WIDTH, QUERIES, KEYS, PACK)


@triton.jit
def backward_tile(
    program, tensors, grads, cu_seqlens, sizes, scales, strides,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    q, k, v, grad = tensors
    grad_q, grad_k, grad_v = grads
    sequences, heads, length_q, length_k = sizes
    first, head = program // heads * PACK, program % heads
    begin_q, rows = span(cu_seqlens[0], first, sequences, length_q, PACK)
    begin_k, columns = span(cu_seqlens[1], first, sequences, length_k, PACK)
    row, column = tl.arange(0, QUERIES), tl.arange(0, KEYS)
    queries = load_tile(q, strides[0], begin_q, 0, head, row, rows, length_q, HEAD, WIDTH, PACK)
    keys = load_tile(k, strides[1], begin_k, 0, head, column, columns, length_k, HEAD, WIDTH, PACK)
    values = load_tile(v, strides[2], begin_k, 0, head, column, columns, length_k, HEAD, WIDTH, PACK)
    grad_out = load_tile(grad, strides[3], begin_q, 0, head, row, rows, length_q, HEAD, WIDTH, PACK)

    scores = tl.dot(queries, tl.trans(keys)) * scales[0]
    weights, inverse = exponentials(scores, visible(row, column, columns, length_q, length_k, PACK), 1)
    weights *= inverse
    grad_weights = tl.dot(grad_out, tl.trans(values))
    along = tl.sum(weights * grad_weights, 1, keep_dims=True)
    grad_scores = (weights * (grad_weights - along)).to(keys.dtype)

    product = tl.dot(tl.trans(weights.to(grad_out.dtype)), grad_out)
    store_tile(grad_v, product, strides[5], begin_k, 0, head, column, columns, length_k, HEAD, WIDTH, PACK)
    product = tl.dot(tl.trans(grad_scores), queries) * scales[1]
    store_tile(grad_k, product, strides[5], begin_k, 0, head, column, columns, length_k, HEAD, WIDTH, PACK)
    product = tl.dot(grad_scores, keys) * scales[1]
    store_tile(grad_q, product, strides[4], begin_q, 0, head, row, rows, length_q, HEAD, WIDTH, PACK)


@triton.jit
def backward_kernel(
    q, k, v, grad, grad_q, grad_k, grad_v, cu_seqlens_q, cu_seqlens_k,
    programs, sequences, heads, length_q, length_k, scale, grad_scale,
    q_sequence, q_row, q_head, k_sequence, k_row, k_head, v_sequence, v_row, v_head, grad_sequence, grad_row, grad_head,
    grad_q_sequence, grad_q_row, grad_q_head, grad_k_sequence, grad_k_row, grad_k_head,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PACK: tl.constexpr,
    PERSISTENT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tensors, grads, cu_seqlens = (q, k, v, grad), (grad_q, grad_k, grad_v), (cu_seqlens_q, cu_seqlens_k)
    sizes, scales = (sequences, heads, length_q, length_k), (scale, grad_scale)
    strides = (
        (q_sequence, q_row, q_head), (k_sequence, k_row, k_head), (v_sequence, v_row, v_head),
        (grad_sequence, grad_row, grad_head), (grad_q_sequence, grad_q_row, grad_q_head),
        (grad_k_sequence, grad_k_row, grad_k_head),
    )  # fmt: skip
    first = tl.program_id(0)
    if PERSISTENT:
        for program in tl.range(first, programs, tl.num_programs(0), num_stages=STAGES):
            backward_tile(program, tensors, grads, cu_seqlens, sizes, scales, strides, HEAD, WIDTH, QUERIES, KEYS, PACK)
    else:
        backward_tile(first, tensors, grads, cu_seqlens, sizes, scales, strides, HEAD, WIDTH, QUERIES, KEYS, PACK)
