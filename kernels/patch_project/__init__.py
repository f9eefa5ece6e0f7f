"""patch_project: the visible patches of a batch as tokens.

    y[m] = W rows[m] + b + position[index[m] mod n],   rows = gather_patches(pixels, index)

pixels (B, H, W, C), W (D, P) with P = p * p * C columns in (row, column, channel) order, b (D,), index int64 (M,) as in
gather_patches, position (n, D) for the n patches of one image -> y (M, D). Masked patches are neither read nor
multiplied, where the usual convolution projects all of them and drops most. Backward: dW = dy^T rows, db and dposition
sums of rows of dy; no gradient reaches the pixels.
Sources: Dosovitskiy et al. 2021, section 3.1 (patch embedding); He et al. 2022, section 3 (only visible patches).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.linear import (
    ROWS,
    cropped,
    onednn_missing,
    onednn_product,
    onednn_refuses,
    onednn_weight_gradient,
    padded_rows,
)
from omnitrunk.kernels.patches import gather_patches


def cost(
    rows: int,
    values: int,
    width: int,
    *,
    bytes_per_value: int = 1,
    bytes_per_element: int = 2,
    backward: bool = False,
) -> Cost:
    """Least work for `rows` patches of `values` values: pixels read once per pass, weight and tokens moved once."""
    moved = rows * values * bytes_per_value + (values * width + rows * width) * bytes_per_element
    return Cost(bytes=moved, flop=(2 * values + (1 if backward else 2)) * rows * width)


def reference(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor,
    index: Tensor,
    patch: int,
    position: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """The definition; see the module's text for the formula."""
    rows = gather_patches(pixels, index, patch, mean=mean, std=std, dtype=weight.dtype, backend="reference")
    tokens = functional.linear(rows, weight, bias)
    return tokens if position is None else tokens + position.index_select(0, index % len(position))


OPERATION = Operation("patch_project", reference)


def _refuses(pixels: Tensor, weight: Tensor, bias: Tensor, index: Tensor, *_others: object) -> str | None:
    return "no patch is picked" if index.numel() == 0 else onednn_refuses(weight, weight)


class _PatchProject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, index: Tensor, position: Tensor | None) -> Tensor:
        tokens = cropped(onednn_product(rows, weight, bias), index.shape)
        place = None
        if position is not None:
            place = index % len(position)
            tokens += position.index_select(0, place)
        ctx.positions = 0 if position is None else len(position)
        ctx.save_for_backward(rows, place)
        return tokens

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, place = ctx.saved_tensors
        _, needs_weight, needs_bias, _, needs_position = ctx.needs_input_grad
        grad_position = None
        if needs_position:
            grad_position = grad.new_zeros(ctx.positions, grad.shape[1]).index_add_(0, place, grad)
        grad_weight = onednn_weight_gradient(padded_rows(grad), rows) if needs_weight else None
        return None, grad_weight, grad.sum(0) if needs_bias else None, None, grad_position


@OPERATION.backend(
    "onednn",
    devices=("cpu",),
    why="native gather, and oneDNN compiles the product for this processor",
    missing=onednn_missing,
    refuses=_refuses,
)
def _onednn(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor,
    index: Tensor,
    patch: int,
    position: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    # The list is lengthened instead of the rows: a few patches gathered twice cost less than a copy of all rows. Their
    # tokens are cropped away, and their gradient is zero.
    surplus = functional.pad(index, (0, -len(index) % ROWS))
    rows = gather_patches(pixels, surplus, patch, mean=mean, std=std)
    return _PatchProject.apply(rows, weight, bias, index, position)


def patch_project(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor,
    index: Tensor,
    *,
    patch: int,
    position: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Gather the picked patches, project them and add their positions.

    pixels uint8 or floating (B, H, W, C), weight (D, P), bias (D,), index int64 (M,), position (n, D) with n patches
    per image -> (M, D). `mean` and `std` as in gather_patches. Differentiable in weight, bias and position. Raises
    ValueError where shapes do not fit together.
    """
    if weight.shape[1] != patch * patch * pixels.shape[-1]:
        raise ValueError(
            f"patch_project: weight {tuple(weight.shape)} does not take patches of "
            f"{patch} x {patch} x {pixels.shape[-1]} values"
        )
    if position is not None and len(position) * patch * patch != pixels.shape[1] * pixels.shape[2]:
        raise ValueError(
            f"patch_project: {len(position)} positions do not cover an image of "
            f"{pixels.shape[1]} x {pixels.shape[2]} pixels in patches of {patch} x {patch}"
        )
    return OPERATION.run(backend, pixels, weight, bias, index, patch, position, mean, std)
