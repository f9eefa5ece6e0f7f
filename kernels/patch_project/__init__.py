"""patch_project: the visible patches of a batch of images or clips as tokens.

    y[m] = W rows[m] + b + position[index[m] mod n],   rows = gather_patches(pixels, index)

pixels (B, H, W, C) or (B, T, H, W, C), W (D, P) with P = t * p * q * C columns in (time, row, column, channel) order,
b (D,), index int64 (M,) as in gather_patches, position (n, D) for the n patches of one sample -> y (M, D). Masked
patches are neither read nor multiplied, where the usual convolution projects all of them and drops most. Backward:
dW = dy^T rows, db and dposition sums of rows of dy; no gradient reaches the pixels.
Sources: Dosovitskiy et al. 2021, section 3.1 (patch embedding); He et al. 2022, section 3 (only visible patches); Tong
et al. 2022 (VideoMAE), section 3.1 (tubelets).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels import gpu
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.linear import onednn_missing, onednn_refuses
from omnitrunk.kernels.patch_project.cpu import project_in_blocks
from omnitrunk.kernels.patches import gather_patches
from omnitrunk.kernels.patches.grid import Patch, Shape, alignment_of, as_clips, grid_of, is_dense, values_of


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
    clips: Tensor,
    weight: Tensor,
    bias: Tensor,
    index: Tensor,
    shape: Shape,
    position: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """The definition; see the module's text for the formula."""
    rows = gather_patches(clips, index, shape, mean=mean, std=std, dtype=weight.dtype, backend="reference")
    tokens = functional.linear(rows, weight, bias)
    return tokens if position is None else tokens + position.index_select(0, index % len(position))


OPERATION = Operation("patch_project", reference)


def _triton_refuses(clips: Tensor, weight: Tensor, bias: Tensor, *_others: Any) -> str | None:
    if weight.dtype == torch.float64:
        return "computes in float32"
    if clips.dtype != torch.uint8 and not clips.is_floating_point():
        return f"projects bytes and floating pixels, not {clips.dtype}"
    return None if clips.numel() and weight.numel() else "there is nothing to project"


def _triton_yields(
    clips: Tensor, weight: Tensor, bias: Tensor, index: Tensor, shape: Shape, *_others: Any
) -> str | None:
    if (gpu.autocast_dtype(weight) or weight.dtype) == torch.float32:
        return "cuBLAS is faster at products in float32"
    if clips.dtype != torch.uint8:
        return "pixels are not bytes, which it saves to widen"
    if not is_dense(clips) or alignment_of(clips, shape) < 16:
        return "lines of patches are not whole runs of 16 bytes"
    if not gpu.settings("patch_project", "tier", weight.shape[1])["FUSED"]:
        return "cuBLAS gains more on patches of so many values than the gather costs"
    return None


@OPERATION.backend(
    "triton",
    devices=gpu.DEVICES,
    why="one product that reads the bytes of the picked patches itself",
    missing=gpu.missing,
    refuses=_triton_refuses,
    yields=_triton_yields,
)
def _triton(*call: Any, **options: Any) -> Tensor:
    from omnitrunk.kernels.patch_project import triton_kernels

    return triton_kernels.patch_project(*call, **options, fused=True)


@OPERATION.backend(
    "triton_gather",
    devices=gpu.DEVICES,
    why="gathers bytes as numbers of the product's dtype, and cuBLAS multiplies",
    missing=gpu.missing,
    refuses=_triton_refuses,
)
def _triton_gather(*call: Any, **options: Any) -> Tensor:
    from omnitrunk.kernels.patch_project import triton_kernels

    return triton_kernels.patch_project(*call, **options, fused=False)


def _refuses(clips: Tensor, weight: Tensor, bias: Tensor, index: Tensor, *_others: object) -> str | None:
    return "no patch is picked" if index.numel() == 0 else onednn_refuses(weight, weight)


@OPERATION.backend(
    "onednn",
    devices=("cpu",),
    why="gathers blocks that stay in the cache, and oneDNN compiles the product for this processor",
    missing=onednn_missing,
    refuses=_refuses,
)
def _onednn(*call: Any, **options: Any) -> Tensor:
    return project_in_blocks(*call, **options)


def patch_project(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor,
    index: Tensor,
    *,
    patch: Patch,
    position: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Gather the picked patches, project them and add their positions.

    pixels uint8 or floating (B, H, W, C) or (B, T, H, W, C), weight (D, P), bias (D,), index int64 (M,), `patch` the
    side of a square, (rows, columns) or (frames, rows, columns), position (n, D) with n patches per sample -> (M, D).
    `mean` and `std` as in gather_patches. Differentiable in weight, bias and position. Raises ValueError where shapes
    do not fit together, IndexError on the CPU where an index is outside of [0, B * n); the Triton backends, which
    cannot raise without waiting for the device, make that token NaN.
    """
    clips, shape = as_clips(pixels, patch)
    if weight.shape[1] != values_of(clips, shape):
        raise ValueError(
            f"patch_project: weight {tuple(weight.shape)} does not take patches of "
            f"{' x '.join(map(str, shape[shape[0] == 1 :]))} x {clips.shape[4]} values"
        )
    if position is not None and len(position) != prod(grid_of(clips, shape)):
        raise ValueError(
            f"patch_project: {len(position)} positions do not cover the {prod(grid_of(clips, shape))} patches of "
            f"{' x '.join(map(str, clips.shape[1:4]))} pixels"
        )
    return OPERATION.run(backend, clips, weight, bias, index, shape, position, mean, std)
