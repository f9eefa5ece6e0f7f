"""attention on GPUs, backward pass for up to 256 keys: a head's keys, values and their gradients stay on chip.

A program walks over the queries of one head, a block at a time. Scores are computed transposed, a row per key, so that
the weights and their gradients are already laid out as first operands of the products that give dv and dk. All keys of
a query are in one block, so that here too nothing is kept from the forward pass and nothing is added atomically.
"""

from __future__ import annotations

import triton
import triton.language as tl

from omnitrunk.kernels.attention.triton_tile import exponentials, load_tile, span, store_tile


@triton.jit
def resident_backward_kernel(
    q, k, v, grad, grad_q, grad_k, grad_v, cu_seqlens_q, cu_seqlens_k,
    sequences, heads, length_q, length_k, scale, grad_scale,
    q_sequence, q_row, q_head, k_sequence, k_row, k_head, v_sequence, v_row, v_head, grad_sequence, grad_row, grad_head,
    grad_q_sequence, grad_q_row, grad_q_head, grad_k_sequence, grad_k_row, grad_k_head,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    q_strides, grad_strides = (q_sequence, q_row, q_head), (grad_sequence, grad_row, grad_head)
    k_strides, v_strides = (k_sequence, k_row, k_head), (v_sequence, v_row, v_head)
    grad_q_strides = grad_q_sequence, grad_q_row, grad_q_head
    grad_k_strides = grad_k_sequence, grad_k_row, grad_k_head
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    begin_q, rows = span(cu_seqlens_q, sequence, sequences, length_q, 1)
    begin_k, columns = span(cu_seqlens_k, sequence, sequences, length_k, 1)
    row, column = tl.arange(0, QUERIES), tl.arange(0, KEYS)
    keys = load_tile(k, k_strides, begin_k, 0, head, column, columns, length_k, HEAD, WIDTH)
    values = load_tile(v, v_strides, begin_k, 0, head, column, columns, length_k, HEAD, WIDTH)
    total_k = tl.zeros((KEYS, WIDTH), tl.float32)
    total_v = tl.zeros((KEYS, WIDTH), tl.float32)
    for start in tl.range(0, rows, QUERIES, num_stages=STAGES):
        queries = load_tile(q, q_strides, begin_q, start, head, row, rows, length_q, HEAD, WIDTH)
        grad_out = load_tile(grad, grad_strides, begin_q, start, head, row, rows, length_q, HEAD, WIDTH)
        scores = tl.dot(keys, tl.trans(queries)) * scale
        weights, inverse = exponentials(scores, (column < columns)[:, None], 0)
        weights *= inverse
        total_v = tl.dot(weights.to(grad_out.dtype), grad_out, total_v)
        grad_weights = tl.dot(values, tl.trans(grad_out))
        along = tl.sum(weights * grad_weights, 0, keep_dims=True)
        grad_scores = (weights * (grad_weights - along)).to(queries.dtype)
        total_k = tl.dot(grad_scores, queries, total_k)
        product = tl.dot(tl.trans(grad_scores), keys) * grad_scale
        store_tile(grad_q, product, grad_q_strides, begin_q, start, head, row, rows, length_q, HEAD, WIDTH)
    total_k *= grad_scale
    store_tile(grad_k, total_k, grad_k_strides, begin_k, 0, head, column, columns, length_k, HEAD, WIDTH)
    store_tile(grad_v, total_v, grad_k_strides, begin_k, 0, head, column, columns, length_k, HEAD, WIDTH)
