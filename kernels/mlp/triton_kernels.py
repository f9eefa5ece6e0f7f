"""mlp on GPUs: GELU, its derivative and the gradient of b1 cost no pass over memory of their own.

Two tiers. Fused: the products x W1^T and dy W2 run in kernels of ours, with GELU in the epilogue. Separate: cuBLAS does
all products, and GELU is one elementwise pass in each direction. By the floors of the two, fused wins as soon as its
products reach 63 % (ViT-B, encoder) or 53 % (MAE, decoder) of the rate of cuBLAS; below a few thousand rows the passes
stay in the L2 cache and cost little. configs.json decides by the number of rows (predicted); float32 takes the separate
tier, because cuBLAS is faster at it. Both keep h and a, and add up gradients in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels import gpu
from omnitrunk.kernels.mlp.triton_elementwise import mlp_gelu, mlp_gelu_backward
from omnitrunk.kernels.mlp.triton_products import mlp_hidden, mlp_hidden_backward


def _hidden_backward(grad: Tensor, w2: Tensor, hidden: Tensor, fused: bool) -> tuple[Tensor, Tensor]:
    if fused:
        return mlp_hidden_backward(grad, w2, hidden)
    grad_hidden = grad @ w2
    return grad_hidden, mlp_gelu_backward(grad_hidden, hidden)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, fused: bool) -> Tensor:
        if fused:
            hidden, active = mlp_hidden(x, w1, b1, any(ctx.needs_input_grad))
        else:
            hidden = functional.linear(x, w1, b1)
            active = mlp_gelu(hidden)
        ctx.save_for_backward(x, w1, hidden, active, w2)
        ctx.fused = fused
        return functional.linear(active, w2, b2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, hidden, active, w2 = ctx.saved_tensors
        needs_x, needs_w1, needs_b1, needs_w2, needs_b2, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_w2 = grad.t() @ active if needs_w2 else None
        grad_hidden, partial = _hidden_backward(grad, w2, hidden, ctx.fused)
        grad_x = grad_hidden @ w1 if needs_x else None
        grad_w1 = grad_hidden.t() @ x if needs_w1 else None
        grad_b1 = partial.sum(0).to(grad.dtype) if needs_b1 else None
        return grad_x, grad_w1, grad_b1, grad_w2, grad.sum(0) if needs_b2 else None, None


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *, fused: bool | None = None) -> Tensor:
    """The operation on tensors of any leading shape; see omnitrunk.kernels.mlp. `fused` names a tier."""
    dtype = gpu.autocast_dtype(x) or x.dtype
    rows = x.reshape(-1, x.shape[-1]).to(dtype).contiguous()
    weights = (tensor.to(dtype).contiguous() for tensor in (w1, b1, w2, b2))
    if fused is None:
        fused = dtype != torch.float32 and gpu.settings("mlp", "tier", len(rows))["FUSED"]
    return _Mlp.apply(rows, *weights, fused).view(*x.shape[:-1], len(w2))


def shipped() -> dict[str, Callable[[], object]]:
    """ViT-B's encoder with 50 visible tokens of 1024 images, MAE's decoder with 197 tokens, and the separate tier."""

    def run(rows: int, width: int, fused: bool) -> None:
        vectors = gpu.example(4 * width), gpu.example(width)
        weights = gpu.example(4 * width, width), gpu.example(width, 4 * width)
        mlp(gpu.example(rows, width), weights[0], vectors[0], weights[1], vectors[1], fused=fused).sum().backward()

    return {
        "51200 x 768": lambda: run(51200, 768, True),
        "201728 x 512": lambda: run(201728, 512, True),
        "51200 x 768, separate": lambda: run(51200, 768, False),
    }
