"""The two products of mlp that GELU touches, with GELU in their epilogues while the tile is in registers.

Forward: h = x W1^T + b1 and a = gelu(h), both written. Backward: dh = (dy W2) gelu'(h), with the sums down the columns
of every tile for db1. The elementwise passes and their memory traffic disappear under the multiplications.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.library import operator
from omnitrunk.kernels.mlp.triton_gelu import gelu, gelu_derivative


@triton.jit
def place_of_tile(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    # Tiles run down GROUP row blocks before the next column block, so that those on chip share operands in the cache.
    program = tl.program_id(0)
    row_blocks, column_blocks = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    first = program // (GROUP * column_blocks) * GROUP
    height = tl.minimum(row_blocks - first, GROUP)
    within = program % (GROUP * column_blocks)
    return first + within % height, within // height


@triton.jit
def product_tile(
    left, right, rows, columns, depth, right_depth, right_column,
    EVEN_DEPTH: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # sum_d left[r, d] right[d, c] in float32, of the tile that the two pointers begin at.
    row, column, step = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    left_place = row[:, None] * depth + step[None, :]
    right_place = step[:, None] * right_depth + column[None, :] * right_column
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in tl.range(0, depth, DEPTH):
        in_left, in_right = (row < rows)[:, None], (column < columns)[None, :]
        if not EVEN_DEPTH:
            in_left &= (step < depth - start)[None, :]
            in_right &= (step < depth - start)[:, None]
        a = tl.load(left + left_place, mask=in_left, other=0.0)
        b = tl.load(right + right_place, mask=in_right, other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        left += DEPTH
        right += DEPTH * right_depth
    return total


@triton.jit
def halves(total):
    # The left and the right columns of a tile: an epilogue on one half at a time needs half of the registers.
    columns: tl.constexpr = total.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(total, (total.shape[0], 2, columns)), (0, 2, 1)))


@triton.jit
def forward_columns(
    total, b1, hidden, active, rows, columns, stride,
    SAVE: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # Bias, GELU and stores of the first COLUMNS columns from where the pointers begin.
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    total += tl.load(b1 + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    place = row[:, None] * stride + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    if SAVE:
        tl.store(hidden + place, total.to(hidden.dtype.element_ty), mask=inside)
    tl.store(active + place, gelu(total, EXACT).to(active.dtype.element_ty), mask=inside)


@triton.jit
def forward_kernel(
    x, w1, b1, hidden, active, rows, columns, depth,
    SAVE: tl.constexpr, EVEN_DEPTH: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row_block, column_block = place_of_tile(rows, columns, ROWS, COLUMNS, GROUP)
    row, column = row_block.to(tl.int64) * ROWS, column_block.to(tl.int64) * COLUMNS
    # From here on offsets are within the tile, and 32 bits hold them.
    rows, stride, columns = tl.minimum(rows - row, ROWS).to(tl.int32), columns, (columns - column).to(tl.int32)
    total = product_tile(
        x + row * depth, w1 + column * depth, rows, columns, depth, 1, depth,
        EVEN_DEPTH, PRECISION, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    b1, hidden, active = b1 + column, hidden + row * stride + column, active + row * stride + column
    HALF: tl.constexpr = COLUMNS // 2
    first, second = halves(total)
    forward_columns(first, b1, hidden, active, rows, columns, stride, SAVE, PRECISION == "ieee", ROWS, HALF)
    forward_columns(
        second, b1 + HALF, hidden + HALF, active + HALF, rows, columns - HALF, stride,
        SAVE, PRECISION == "ieee", ROWS, HALF,
    )  # fmt: skip


@triton.jit
def backward_columns(
    total, hidden, grad_hidden, partial, rows, columns, stride,
    EXACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # gelu', stores and column sums of the first COLUMNS columns from where the pointers begin.
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    place = row[:, None] * stride + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    total *= gelu_derivative(tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32), EXACT)
    tl.store(grad_hidden + place, total.to(grad_hidden.dtype.element_ty), mask=inside)
    tl.store(partial + column, tl.sum(total, 0), mask=column < columns)


@triton.jit
def backward_kernel(
    grad, w2, hidden, grad_hidden, partial, rows, columns, depth,
    EVEN_DEPTH: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row_block, column_block = place_of_tile(rows, columns, ROWS, COLUMNS, GROUP)
    row, column = row_block.to(tl.int64) * ROWS, column_block.to(tl.int64) * COLUMNS
    rows, stride, columns = tl.minimum(rows - row, ROWS).to(tl.int32), columns, (columns - column).to(tl.int32)
    total = product_tile(
        grad + row * depth, w2 + column, rows, columns, depth, stride, 1,
        EVEN_DEPTH, PRECISION, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    hidden, grad_hidden = hidden + row * stride + column, grad_hidden + row * stride + column
    partial += row_block.to(tl.int64) * stride + column
    HALF: tl.constexpr = COLUMNS // 2
    first, second = halves(total)
    backward_columns(first, hidden, grad_hidden, partial, rows, columns, stride, PRECISION == "ieee", ROWS, HALF)
    backward_columns(
        second, hidden + HALF, grad_hidden + HALF, partial + HALF, rows, columns - HALF, stride,
        PRECISION == "ieee", ROWS, HALF,
    )  # fmt: skip


def _launch(
    kernel: Any, name: str, tensors: tuple[Tensor, ...], rows: int, columns: int, depth: int, **flags: bool
) -> None:
    settings = gpu.settings("mlp", name, rows)
    tiles = triton.cdiv(rows, settings["ROWS"]) * triton.cdiv(columns, settings["COLUMNS"])
    gpu.launch(
        kernel, (tiles,), *tensors, rows, columns, depth,
        EVEN_DEPTH=depth % settings["DEPTH"] == 0, PRECISION="ieee" if tensors[0].dtype == torch.float32 else "tf32",
        **flags, **settings,
    )  # fmt: skip


@operator()
def mlp_hidden(x: Tensor, w1: Tensor, b1: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    """Rows x (R, D), w1 (F, D), b1 (F,) -> h (R, F; no rows unless `save`) and a = gelu(h) (R, F)."""
    (rows, depth), columns = x.shape, len(w1)
    hidden, active = (gpu.new((count, columns), x.dtype, x.device) for count in (rows if save else 0, rows))
    _launch(forward_kernel, "forward", (x, w1, b1, hidden, active), rows, columns, depth, SAVE=save)
    return hidden, active


@operator()
def mlp_hidden_backward(grad: Tensor, w2: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient dy (R, O), w2 (O, F), h (R, F) -> dh (R, F) and float32 sums of its row blocks, (blocks, F)."""
    (rows, depth), columns = grad.shape, w2.shape[1]
    grad_hidden = gpu.new((rows, columns), grad.dtype, grad.device)
    blocks = triton.cdiv(rows, gpu.settings("mlp", "backward", rows)["ROWS"])
    partial = gpu.new((blocks, columns), torch.float32, grad.device)
    _launch(backward_kernel, "backward", (grad, w2, hidden, grad_hidden, partial), rows, columns, depth)
    return grad_hidden, partial
