"""layer_norm on GPUs: a few rows per program, all of a row on chip, statistics in float32.

The forward pass saves r' (which its caller keeps anyway), mean and 1 / std, never y. The backward pass runs a fixed
number of programs that walk over the rows and keep their share of the weight gradients in registers; the shares are
added up in a fixed order, so that the result is the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.library import operator

PROGRAMS_PER_MULTIPROCESSOR = 4


@triton.jit
def forward_kernel(
    x, residual, layer_scale, drop_scale, weight, bias, y, stream, mean, rstd,
    rows, width, rows_per_scale, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_LAYER_SCALE: tl.constexpr, HAS_DROP_SCALE: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        if HAS_LAYER_SCALE:
            value *= tl.load(layer_scale + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
        if HAS_DROP_SCALE:
            value *= tl.load(drop_scale + row // rows_per_scale, mask=row < rows, other=0.0).to(tl.float32)[:, None]
        value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
        # The statistics are those of the stream as it is stored: backward reads it back from there.
        stored = value.to(stream.dtype.element_ty)
        tl.store(stream + place, stored, mask=inside)
        value = stored.to(tl.float32)
    center = tl.sum(value, 1) / width
    value = tl.where(inside, value - center[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
    tl.store(mean + row, center, mask=row < rows)
    tl.store(rstd + row, scale, mask=row < rows)
    gain = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    out = value * scale[:, None] * gain[None, :] + shift[None, :]
    tl.store(y + place, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad_y, grad_stream, x, stream, layer_scale, drop_scale, weight, mean, rstd,
    grad_residual, grad_x, partial,
    rows, width, rows_per_scale,
    HAS_GRAD_STREAM: tl.constexpr, HAS_LAYER_SCALE: tl.constexpr, HAS_DROP_SCALE: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, WIDTH)
    in_width = column < width
    gain = tl.load(weight + column, mask=in_width, other=0.0).to(tl.float32)
    grad_weight = tl.zeros((WIDTH,), tl.float32)
    grad_bias = tl.zeros((WIDTH,), tl.float32)
    grad_scale = tl.zeros((WIDTH,), tl.float32)
    if HAS_LAYER_SCALE:
        scale = tl.load(layer_scale + column, mask=in_width, other=0.0).to(tl.float32)
    for first in range(program * ROWS, rows, programs * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & in_width[None, :]
        place = row[:, None] * width + column[None, :]
        value = tl.load(stream + place, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_y + place, mask=inside, other=0.0).to(tl.float32)
        center = tl.load(mean + row, mask=row < rows, other=0.0)
        deviation = tl.load(rstd + row, mask=row < rows, other=0.0)
        normal = tl.where(inside, (value - center[:, None]) * deviation[:, None], 0.0)
        grad_weight += tl.sum(grad * normal, 0)
        grad_bias += tl.sum(grad, 0)
        grad *= gain[None, :]
        along = tl.sum(grad * normal, 1) / width
        grad = (grad - tl.sum(grad, 1)[:, None] / width - normal * along[:, None]) * deviation[:, None]
        if HAS_GRAD_STREAM:
            grad += tl.load(grad_stream + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_residual + place, grad.to(grad_residual.dtype.element_ty), mask=inside)
        if HAS_DROP_SCALE:
            drop = tl.load(drop_scale + row // rows_per_scale, mask=row < rows, other=0.0).to(tl.float32)
            grad *= drop[:, None]
        if HAS_LAYER_SCALE:
            branch = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
            grad_scale += tl.sum(tl.where(inside, grad * branch, 0.0), 0)
            grad *= scale[None, :]
        if HAS_LAYER_SCALE or HAS_DROP_SCALE:
            tl.store(grad_x + place, grad.to(grad_x.dtype.element_ty), mask=inside)
    share = partial + program * width + column
    tl.store(share, grad_weight, mask=in_width)
    tl.store(share + programs * width, grad_bias, mask=in_width)
    if HAS_LAYER_SCALE:
        tl.store(share + 2 * programs * width, grad_scale, mask=in_width)


def _shape(kernel: str, x: Tensor) -> tuple[int, int, dict[str, Any]]:
    """Rows, width and launch settings for x (R, D)."""
    rows, width = x.shape
    return rows, width, {**gpu.settings("layer_norm", kernel, width), "WIDTH": gpu.next_power_of_2(width)}


@operator()
def layer_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float,
    residual: Tensor | None, layer_scale: Tensor | None, drop_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Rows x (R, D) -> y (R, D), the stream r' (R, D; no rows without a residual), mean (R,), 1 / std (R,)."""
    rows, width, settings = _shape("forward", x)
    y = gpu.new(x.shape, x.dtype, x.device)
    stream = gpu.new((0 if residual is None else rows, width), x.dtype, x.device)
    mean, rstd = (gpu.new((rows,), torch.float32, x.device) for _ in range(2))
    gpu.launch(
        forward_kernel, (triton.cdiv(rows, settings["ROWS"]),),
        x, residual, layer_scale, drop_scale, weight, bias, y, stream, mean, rstd,
        rows, width, 1 if drop_scale is None else rows // len(drop_scale), eps,
        HAS_RESIDUAL=residual is not None, HAS_LAYER_SCALE=layer_scale is not None,
        HAS_DROP_SCALE=drop_scale is not None, **settings,
    )  # fmt: skip
    return y, stream, mean, rstd


@operator()
def layer_norm_backward(
    grad_y: Tensor, grad_stream: Tensor | None, x: Tensor, stream: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor,
    layer_scale: Tensor | None, drop_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the stream (R, D), of the branch x (R, D; no rows where it is the same), of weight, bias, scale."""
    rows, width, settings = _shape("backward", stream)
    programs = min(triton.cdiv(rows, settings["ROWS"]), PROGRAMS_PER_MULTIPROCESSOR * gpu.multiprocessors(x.device))
    scaled, sums = layer_scale is not None or drop_scale is not None, 2 if layer_scale is None else 3
    grad_residual = gpu.new(stream.shape, stream.dtype, x.device)
    grad_x = gpu.new((rows if scaled else 0, width), x.dtype, x.device)
    partial = gpu.new((sums, programs, width), torch.float32, x.device)
    gpu.launch(
        backward_kernel, (programs,),
        grad_y, grad_stream, x, stream, layer_scale, drop_scale, weight, mean, rstd, grad_residual, grad_x, partial,
        rows, width, 1 if drop_scale is None else rows // len(drop_scale),
        HAS_GRAD_STREAM=grad_stream is not None, HAS_LAYER_SCALE=layer_scale is not None,
        HAS_DROP_SCALE=drop_scale is not None, **settings,
    )  # fmt: skip
    return grad_residual, grad_x, partial.sum(1)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float,
        residual: Tensor | None, layer_scale: Tensor | None, drop_scale: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        y, stream, mean, rstd = layer_norm_forward(x, weight, bias, eps, residual, layer_scale, drop_scale)
        branch = x if layer_scale is not None else None
        ctx.save_for_backward(branch, x if residual is None else stream, weight, mean, rstd, layer_scale, drop_scale)
        ctx.has_residual = residual is not None
        ctx.bias_dtype = bias.dtype
        ctx.set_materialize_grads(False)
        return y, stream

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_stream: Tensor | None) -> tuple[Tensor | None, ...]:
        branch, stream, weight, mean, rstd, layer_scale, drop_scale = ctx.saved_tensors
        grad_y = torch.zeros_like(stream) if grad_y is None else grad_y.contiguous()
        grad_stream = None if grad_stream is None or not ctx.has_residual else grad_stream.contiguous()
        branch = stream if branch is None else branch
        grad_residual, grad_x, sums = layer_norm_backward(
            grad_y, grad_stream, branch, stream, weight, mean, rstd, layer_scale, drop_scale
        )
        grad_x = grad_x if layer_scale is not None or drop_scale is not None else grad_residual
        grad_scale = None if layer_scale is None else sums[2].to(layer_scale.dtype)
        grad_weight, grad_bias = sums[0].to(weight.dtype), sums[1].to(ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, None, grad_residual if ctx.has_residual else None, grad_scale, None


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    layer_scale: Tensor | None = None,
    drop_scale: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The operation on tensors of any leading shape; see omnitrunk.kernels.layer_norm."""
    shape, width = x.shape, x.shape[-1]
    rows = x.reshape(-1, width).contiguous()
    carried = None if residual is None else residual.reshape(-1, width).contiguous()
    y, stream = _LayerNorm.apply(rows, weight, bias, eps, carried, layer_scale, drop_scale)
    return y.view(shape) if residual is None else (y.view(shape), stream.view(shape))


def shipped() -> dict[str, Callable[[], object]]:
    """Widths of ViT-B and of MAE's decoder; with all options once."""

    def plain(width: int) -> None:
        x, weight, bias = gpu.example(6400, width), *(gpu.example(width, dtype=torch.float32) for _ in range(2))
        layer_norm(x, weight, bias).sum().backward()

    def full(width: int) -> None:
        x, residual, *vectors = (
            gpu.example(128, 50, width),
            gpu.example(128, 50, width),
            *(gpu.example(width) for _ in range(3)),
        )
        y, stream = layer_norm(x, *vectors[:2], 1e-6, residual, vectors[2], gpu.example(128, dtype=torch.float32))
        (y.sum() + stream.sum()).backward()

    return {
        "768": lambda: plain(768),
        "512": lambda: plain(512),
        "768, residual, LayerScale, drop path": lambda: full(768),
    }
