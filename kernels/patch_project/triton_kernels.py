"""patch_project on GPUs: pixels stay bytes, and normalization is part of the weight.

Fused: one product that reads the picked bytes itself. Separate: they are gathered as numbers in the dtype of the
product, cuBLAS multiplies, and a last pass adds bias and positions. By the floors of the two, fused wins as soon as its
product reaches 43 % of the rate of cuBLAS for P = D = 768, and 67 % for P = 4096, D = 1280 (predicted); configs.json
holds the bound on P. Both recompute the folded weight in every call, one pass over W, and keep nothing but the pixels
for the backward pass, which gathers again: dW' = dy^T u by cuBLAS. All gradients are added up in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.patch_project.triton_fold import CENTER, UNIT, centered, fold, unfold
from omnitrunk.kernels.patch_project.triton_positions import add_positions, sum_by_position
from omnitrunk.kernels.patch_project.triton_product import locate_patches, project_patches
from omnitrunk.kernels.patches import affine, channel_statistics
from omnitrunk.kernels.patches.grid import Shape
from omnitrunk.kernels.patches.triton_gather import gather_rows


def _rows(clips: Tensor, index: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """Patches as the folded weight takes them: u = (x - 128) / UNIT of bytes, floating pixels as they are."""
    scale, shift = ([1 / UNIT], [-CENTER / UNIT]) if clips.dtype == torch.uint8 else ([], [])
    return gather_rows(clips, index, list(shape), dtype, scale, shift)


class _PatchProject(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, clips: Tensor, weight: Tensor, bias: Tensor, index: Tensor, position: Tensor | None,
        shape: Shape, scale: list[float], shift: list[float], dtype: torch.dtype, fused: bool,
    ) -> Tensor:  # fmt: skip
        folded, constant = fold(weight, bias, scale, shift, dtype)
        result = dtype if position is None else torch.promote_types(dtype, position.dtype)
        ctx.save_for_backward(clips, index)
        ctx.shape, ctx.scale, ctx.shift, ctx.dtype = shape, scale, shift, dtype
        ctx.weight_dtype, ctx.bias_dtype = weight.dtype, bias.dtype
        ctx.position = None if position is None else (len(position), position.dtype)
        if fused:
            origin, place = locate_patches(clips, index, list(shape))
            return project_patches(clips, origin, place, folded, constant, position, list(shape), result)
        product = _rows(clips, index, shape, dtype) @ folded.t()
        return add_positions(product, constant, position, index, result)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        clips, index = ctx.saved_tensors
        _, needs_weight, needs_bias, _, needs_position, *_ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_weight = grad_bias = grad_position = None
        if needs_weight or needs_bias:
            grad_bias = grad.sum(0, dtype=torch.float32)
        if needs_weight:
            product = grad.to(ctx.dtype).t() @ _rows(clips, index, ctx.shape, ctx.dtype)
            grad_weight = unfold(product, grad_bias, ctx.scale, ctx.shift, ctx.weight_dtype)
        if needs_position:
            grad_position = sum_by_position(grad, index, ctx.position[0]).to(ctx.position[1])
        grad_bias = grad_bias.to(ctx.bias_dtype) if needs_bias else None
        return None, grad_weight, grad_bias, None, grad_position, None, None, None, None, None


def patch_project(
    clips: Tensor, weight: Tensor, bias: Tensor, index: Tensor, shape: Shape,
    position: Tensor | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
    *, fused: bool,
) -> Tensor:  # fmt: skip
    """The operation on clips (B, T, H, W, C); see omnitrunk.kernels.patch_project. `fused` chooses how."""
    scale, shift = [1.0], [0.0]
    if clips.dtype == torch.uint8:
        scale, shift = centered(*affine(*channel_statistics(clips, mean, std)))
    dtype = gpu.autocast_dtype(weight) or weight.dtype
    position = None if position is None else position.contiguous()
    return _PatchProject.apply(
        clips.detach(), weight.contiguous(), bias, index.contiguous(), position, shape, scale, shift, dtype, fused
    )


def shipped() -> dict[str, Callable[[], object]]:
    """ViT-B on a quarter of the patches of RGB and of depth, VideoMAE on a tenth of its tubelets, and in two steps."""

    def run(clips: tuple[int, ...], rows: int, shape: Shape, position: Tensor, fused: bool = True) -> None:
        channels = clips[4]
        weight, bias = gpu.example(768, prod(shape) * channels), gpu.example(768)
        mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
        pixels, index = gpu.example(*clips, dtype=torch.uint8), gpu.example(rows, dtype=torch.int64)
        patch_project(pixels, weight, bias, index, shape, position, mean, std, fused=fused).sum().backward()

    image, video, square = (256, 1, 224, 224), (128, 16, 224, 224, 3), (1, 16, 16)
    learned = gpu.example(196, 768)
    table = gpu.example(1568, 768, dtype=torch.float32).detach()
    return {
        "RGB, 49 of 196": lambda: run((*image, 3), 256 * 49, square, learned.detach()),
        "depth, 49 of 196": lambda: run((*image, 1), 256 * 49, square, learned.detach()),
        "video, 160 of 1568, table in float32": lambda: run(video, 128 * 160, (2, 16, 16), table),
        "RGB, separate, learned positions": lambda: run((*image, 3), 256 * 49, square, learned, False),
    }
