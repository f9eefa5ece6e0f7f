"""GELU and its backward as passes over memory of their own, around products by cuBLAS."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.library import operator
from omnitrunk.kernels.mlp.triton_gelu import gelu, gelu_derivative

PROGRAMS_PER_MULTIPROCESSOR = 8


@triton.jit
def gelu_kernel(hidden, active, elements, EXACT: tl.constexpr, SIZE: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    value = tl.load(hidden + place, mask=place < elements, other=0.0).to(tl.float32)
    tl.store(active + place, gelu(value, EXACT).to(active.dtype.element_ty), mask=place < elements)


@triton.jit
def gelu_backward_kernel(
    grad, hidden, partial, rows, columns, blocks_per_program,
    EXACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # Every program walks down its share of the rows of one column block, in place.
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1) * blocks_per_program * ROWS
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(first, tl.minimum(first + blocks_per_program * ROWS, rows), ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        place = row[:, None] * columns + column[None, :]
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        value = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        value *= gelu_derivative(tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32), EXACT)
        tl.store(grad + place, value.to(grad.dtype.element_ty), mask=inside)
        total += tl.sum(value, 0)
    tl.store(partial + tl.program_id(1).to(tl.int64) * columns + column, total, mask=column < columns)


@operator()
def mlp_gelu(hidden: Tensor) -> Tensor:
    """gelu(h) of contiguous h (R, F)."""
    active = gpu.new(hidden.shape, hidden.dtype, hidden.device)
    settings = gpu.settings("mlp", "gelu", hidden.numel())
    gpu.launch(
        gelu_kernel, (triton.cdiv(hidden.numel(), settings["SIZE"]),), hidden, active, hidden.numel(),
        EXACT=hidden.dtype == torch.float32, **settings,
    )  # fmt: skip
    return active


@operator(mutates=("grad",))
def mlp_gelu_backward(grad: Tensor, hidden: Tensor) -> Tensor:
    """Multiply da (R, F) by gelu'(h) in place; returns float32 sums of its row blocks, (blocks, F)."""
    rows, columns = grad.shape
    settings = gpu.settings("mlp", "gelu_backward", columns)
    blocks, column_blocks = triton.cdiv(rows, settings["ROWS"]), triton.cdiv(columns, settings["COLUMNS"])
    wanted = triton.cdiv(PROGRAMS_PER_MULTIPROCESSOR * gpu.multiprocessors(grad.device), column_blocks)
    blocks_per_program = triton.cdiv(blocks, wanted)
    programs = triton.cdiv(blocks, max(blocks_per_program, 1))
    partial = gpu.new((programs, columns), torch.float32, grad.device)
    gpu.launch(
        gelu_backward_kernel, (column_blocks, programs), grad, hidden, partial, rows, columns, blocks_per_program,
        EXACT=grad.dtype == torch.float32, **settings,
    )  # fmt: skip
    return partial
