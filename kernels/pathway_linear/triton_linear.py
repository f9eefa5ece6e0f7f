"""pathway_linear on GPUs with W + lambda W' combined inside the product, tile by tile, in float32.

Both weights are read once for every tile of rows, so that this pays for few rows only: at 30 % less than the rate of a
plain product it breaks even with combining first at about 1,500 rows (predicted).
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
from omnitrunk.kernels.pathway_linear.combine import Pathway


@triton.jit
def product_kernel(
    x, weight, auxiliary, scale, bias, out,
    rows, columns, depth, weight_column, weight_depth,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # out[r, c] = sum_d x[r, d] (W + lambda W')[c, d]; the strides of the weights let the same kernel multiply by the
    # transposed weight in the backward pass.
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    factor = tl.load(scale).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, depth, DEPTH):
        step = start + tl.arange(0, DEPTH)
        left = tl.load(x + row[:, None] * depth + step, mask=(row < rows)[:, None] & (step < depth), other=0.0)
        place = column[None, :] * weight_column + step[:, None] * weight_depth
        inside = (column < columns)[None, :] & (step < depth)[:, None]
        joined = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
        joined += factor * tl.load(auxiliary + place, mask=inside, other=0.0).to(tl.float32)
        total = tl.dot(left, joined.to(left.dtype), total, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    place = row[:, None] * columns + column[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])


@operator()
def pathway_product(
    x: Tensor, weight: Tensor, auxiliary: Tensor, scale: Tensor, bias: Tensor | None, transposed: bool
) -> Tensor:
    """Rows x (R, K) times (W + lambda W')^T, (N, K) -> (R, N); `transposed` multiplies (R, N) by the weight itself."""
    outputs, inputs = weight.shape
    columns, depth = (inputs, outputs) if transposed else (outputs, inputs)
    out = gpu.new((len(x), columns), x.dtype, x.device)
    settings = gpu.settings("pathway_linear", "linear", len(x))
    gpu.launch(
        product_kernel, (triton.cdiv(columns, settings["COLUMNS"]), triton.cdiv(len(x), settings["ROWS"])),
        x, weight, auxiliary, scale, bias, out,
        len(x), columns, depth, *((1, inputs) if transposed else (inputs, 1)),
        HAS_BIAS=bias is not None, PRECISION="ieee" if x.dtype == torch.float32 else "tf32", **settings,
    )  # fmt: skip
    return out


class _PathwayLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, auxiliary: Tensor, scale: Tensor, bias: Tensor | None, paired: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight, auxiliary, scale)
        ctx.paired, ctx.bias_dtype = paired, None if bias is None else bias.dtype
        return pathway_product(x, weight, auxiliary, scale, bias, False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, auxiliary, scale = ctx.saved_tensors
        needs_x, needs_weight, needs_auxiliary, needs_scale, needs_bias, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_x = pathway_product(grad, weight, auxiliary, scale, None, True) if needs_x else None
        grad_weight = grad_auxiliary = grad_scale = None
        if needs_weight or not ctx.paired:
            grad_weight = (grad.t() @ x).to(weight.dtype)
        if needs_auxiliary and not ctx.paired:
            grad_auxiliary = (grad_weight * scale).to(auxiliary.dtype)
        if needs_scale and not ctx.paired:
            product = torch.dot(grad_weight.flatten(), auxiliary.to(weight.dtype).flatten())
            grad_scale = product.to(scale.dtype).view(scale.shape)
        grad_bias = grad.sum(0).to(ctx.bias_dtype) if needs_bias else None
        return grad_x, grad_weight, grad_auxiliary, grad_scale, grad_bias, None


def pathway_linear(x: Tensor, pathway: Pathway, bias: Tensor | None = None, paired: bool = False) -> Tensor:
    """The operation on tensors of any leading shape; see omnitrunk.kernels.pathway_linear."""
    x = x.to(gpu.autocast_dtype(x) or x.dtype)
    weights = (tensor.contiguous() for tensor in (pathway.weight, *pathway.auxiliaries))
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = _PathwayLinear.apply(rows, *weights, *pathway.scales, bias, paired)
    return out.view(*x.shape[:-1], out.shape[-1])


def shipped() -> dict[str, Callable[[], object]]:
    """Feature extraction with few rows: ViT-B's first MLP layer, weights as bfloat16 copies."""

    def run(rows: int) -> None:
        weight, auxiliary, scale = gpu.example(3072, 768), gpu.example(3072, 768), gpu.example(1, dtype=torch.float32)
        pathway_linear(
            gpu.example(rows, 768), Pathway(weight, (auxiliary,), (scale,)), gpu.example(3072)
        ).sum().backward()

    return {"50 rows": lambda: run(50), "800 rows": lambda: run(800)}
