"""Normalization folded into the projection: patches stay integers, which every 16-bit format holds exactly.

A byte x becomes u = (x - 128) / UNIT, and what normalization leaves, x * scale + shift = (UNIT scale) u + constant per
channel, moves into the weight and the bias:

    W'[d, k] = W[d, k] UNIT scale,   b'[d] = b[d] + sum_k W[d, k] (128 scale + shift),   W x + b = W' u + b'

Without the center the rounding of W' would weigh more than twice as much; UNIT keeps W' at the size of W, which
matters to float16. Gradients: dW = dW' UNIT scale + db (128 scale + shift), with dW' = dy^T u.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.gather_tokens.triton_kernels import tile_of, tiles
from omnitrunk.kernels.library import operator
from omnitrunk.kernels.patches.triton_gather import of_channel

CENTER, UNIT = 128, 64


@triton.jit
def fold_kernel(
    weight, bias, folded, constant, rows, width, SCALE: tl.constexpr, SHIFT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        place = row[:, None] * width + column[None, :]
        value = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
        total += value * of_channel(column[None, :], SHIFT)
        value *= of_channel(column[None, :], SCALE)
        tl.store(folded + place, value.to(folded.dtype.element_ty), mask=inside)
    value = tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)
    tl.store(constant + row, value + tl.sum(total, 1), mask=row < rows)


@triton.jit
def unfold_kernel(
    grad, grad_bias, grad_weight, rows, width, SCALE: tl.constexpr, SHIFT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column, inside = tile_of(tl.program_id(0), rows, width, ROWS, BLOCK)
    place = row[:, None] * width + column[None, :]
    value = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32) * of_channel(column[None, :], SCALE)
    value += tl.load(grad_bias + row, mask=row < rows, other=0.0)[:, None] * of_channel(column[None, :], SHIFT)
    tl.store(grad_weight + place, value.to(grad_weight.dtype.element_ty), mask=inside)


def centered(scale: Sequence[float], shift: Sequence[float]) -> tuple[list[float], list[float]]:
    """Factors of u and constants, per channel, for bytes that x * scale + shift would normalize."""
    return [UNIT * factor for factor in scale], [CENTER * a + b for a, b in zip(scale, shift, strict=True)]


@operator()
def fold(
    weight: Tensor, bias: Tensor, scale: list[float], shift: list[float], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Weight (D, P), bias (D,), contiguous, with what `centered` returns -> W' (D, P) of dtype, b' float32 (D,)."""
    rows, width = weight.shape
    folded = gpu.new((rows, width), dtype, weight.device)
    constant = gpu.new((rows,), torch.float32, weight.device)
    settings = gpu.settings("patch_project", "fold", width)
    gpu.launch(
        fold_kernel, (triton.cdiv(rows, settings["ROWS"]),),
        weight, bias, folded, constant, rows, width, SCALE=tuple(scale), SHIFT=tuple(shift), **settings,
    )  # fmt: skip
    return folded, constant


@operator()
def unfold(grad: Tensor, grad_bias: Tensor, scale: list[float], shift: list[float], dtype: torch.dtype) -> Tensor:
    """The gradient of the weight (D, P) in dtype from that of W' and float32 (D,) of the bias."""
    rows, width = grad.shape
    grad_weight = gpu.new((rows, width), dtype, grad.device)
    settings = gpu.settings("patch_project", "unfold", width)
    gpu.launch(
        unfold_kernel, (tiles(rows, width, settings),),
        grad, grad_bias, grad_weight, rows, width, SCALE=tuple(scale), SHIFT=tuple(shift), **settings,
    )  # fmt: skip
    return grad_weight
