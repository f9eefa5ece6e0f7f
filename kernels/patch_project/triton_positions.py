"""What surrounds a product of gathered patches: bias and positions of its tokens, and the gradient of the positions."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.gather_tokens.triton_kernels import tile_of, tiles
from omnitrunk.kernels.library import operator


@triton.jit
def add_kernel(
    product, constant, position, index, out, rows, width, positions,
    HAS_POSITION: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column, inside = tile_of(tl.program_id(0), rows, width, ROWS, BLOCK)
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    value = tl.load(product + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(constant + column, mask=column < width, other=0.0)[None, :]
    if HAS_POSITION:
        number = tl.load(index + row, mask=row < rows, other=0)
        # The product of an index outside of the images is NaN; it may read any position.
        cell = tl.where(number < 0, 0, number).to(tl.int32) % positions
        value += tl.load(position + (cell[:, None] * width + column[None, :]), mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def sum_kernel(
    grad, index, partial, rows, width, positions, rows_per_program,
    PRECISION: tl.constexpr, POSITIONS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # A product with a matrix of zeros and ones that exists in registers only: no atomics, no sorting, any index.
    cell = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(2).to(tl.int64) * rows_per_program
    rows = tl.minimum(rows - first, rows_per_program).to(tl.int32)
    grad += first * width
    total = tl.zeros((POSITIONS, COLUMNS), tl.float32)
    for start in tl.range(0, rows, DEPTH):
        row = start + tl.arange(0, DEPTH)
        number = tl.load(index + first + row, mask=row < rows, other=0).to(tl.int32) % positions
        chosen = (number[None, :] == cell[:, None]).to(grad.dtype.element_ty)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        value = tl.load(grad + (row[:, None] * width + column[None, :]), mask=inside, other=0.0)
        total = tl.dot(chosen, value, total, input_precision=PRECISION)
    inside = (cell < positions)[:, None] & (column < width)[None, :]
    share = tl.program_id(2).to(tl.int64) * positions * width
    tl.store(partial + share + cell[:, None] * width + column[None, :], total, mask=inside)


@operator()
def add_positions(
    product: Tensor, constant: Tensor, position: Tensor | None, index: Tensor, dtype: torch.dtype
) -> Tensor:
    """Rows (M, D) + constant float32 (D,) + position[index mod n] of (n, D), index int64 (M,) -> (M, D) of `dtype`."""
    rows, width = product.shape
    out = gpu.new((rows, width), dtype, product.device)
    settings = gpu.settings("patch_project", "add", width)
    gpu.launch(
        add_kernel, (tiles(rows, width, settings),),
        product, constant, position, index, out, rows, width, 1 if position is None else len(position),
        HAS_POSITION=position is not None, **settings,
    )  # fmt: skip
    return out


@operator()
def sum_by_position(grad: Tensor, index: Tensor, positions: int) -> Tensor:
    """Sums of the rows of grad (M, D) that share a place index mod n, index int64 (M,) -> float32 (n, D)."""
    rows, width = grad.shape
    settings = gpu.settings("patch_project", "sum", rows)
    grid = triton.cdiv(positions, settings["POSITIONS"]), triton.cdiv(width, settings["COLUMNS"])
    # Enough shares of the rows to occupy the GPU, each with a few steps of its own.
    shares = min(
        triton.cdiv(rows, 8 * settings["DEPTH"]), triton.cdiv(2 * gpu.multiprocessors(grad.device), grid[0] * grid[1])
    )
    per_program = triton.cdiv(triton.cdiv(rows, max(1, shares)), settings["DEPTH"]) * settings["DEPTH"]
    shares = triton.cdiv(rows, max(1, per_program))
    partial = gpu.new((shares, positions, width), torch.float32, grad.device)
    gpu.launch(
        sum_kernel, (*grid, shares), grad, index, partial, rows, width, positions, per_program,
        PRECISION="ieee" if grad.dtype == torch.float32 else "tf32", **settings,
    )  # fmt: skip
    return partial.sum(0)
