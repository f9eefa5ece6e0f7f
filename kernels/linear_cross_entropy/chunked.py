"""The chunks of linear_cross_entropy, whatever computes softmax, and softmax in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.linear import linear

CHUNK_BYTES = 20_000_000
"""Logits of a chunk: what stays in the second-level cache of a large GPU beside its operands, and in that of a CPU."""

Softmax = Callable[[Tensor, Tensor, float, int, bool], Tensor]
"""(logits, target, label smoothing, ignored class, whether gradients are wanted) -> the loss of every row.

With gradients, those of the logits take their place.
"""


def softmax_gradient(
    logits: Tensor, target: Tensor, label_smoothing: float, ignore_index: int, differentiate: bool
) -> Tensor:
    """Losses of rows of logits (R, C) -> (R,), in float32 or wider, and on request the gradient in place of the logits.

    target int64 (R,) or weights (R, C).
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    share = label_smoothing / logits.shape[1]
    total = wide.logsumexp(1)
    if target.dim() == 2:
        weights = target.to(wide.dtype) * (1 - label_smoothing) + share
        mass = weights.sum(1)
        losses = total * mass - (weights * wide).sum(1)
        if differentiate:
            softmax = wide.sub_(total[:, None]).exp_()
            logits.copy_(softmax.mul_(mass[:, None]).sub_(weights))
        return losses
    kept = target != ignore_index
    index = target.where(kept, 0)[:, None]
    losses = total - (1 - label_smoothing) * wide.gather(1, index)[:, 0]
    if label_smoothing > 0:
        losses -= share * wide.sum(1)
    if differentiate:
        gradient = wide.sub_(total[:, None]).exp_().sub_(share)
        gradient.scatter_add_(1, index, gradient.new_full(index.shape, label_smoothing - 1))
        logits.copy_(gradient.mul_(kept[:, None]))
    return losses.where(kept, 0)


def _chunks(rows: int, classes: int, element_size: int) -> list[slice]:
    length = max(16, CHUNK_BYTES // (classes * element_size) // 16 * 16)
    return [slice(start, min(start + length, rows)) for start in range(0, rows, length)]


def _add_weight_gradient(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """Add grad (R, C) transposed x (R, D) to total (C, D), which may be wider, with nothing rounded in between."""
    if grad.is_cuda and grad.dtype != total.dtype:
        torch.addmm(total, grad.t(), x, out_dtype=total.dtype, out=total)
    else:
        total += linear(grad.t().to(total.dtype), x.t().to(total.dtype))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor,
        label_smoothing: float, ignore_index: int, softmax: Softmax,
    ) -> Tensor:  # fmt: skip
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide = torch.promote_types(x.dtype, torch.float32)
        grad_x = torch.empty_like(x) if needs_x else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if needs_bias else None
        losses = [x.new_zeros(0, dtype=wide)]
        differentiate = any(ctx.needs_input_grad)
        for rows in _chunks(len(x), len(weight), x.element_size()):
            logits = linear(x[rows], weight, bias)
            losses.append(softmax(logits, target[rows], label_smoothing, ignore_index, differentiate))
            if needs_x:
                grad_x[rows] = linear(logits, weight.t())
            if needs_weight:
                _add_weight_gradient(grad_weight, logits, x[rows])
            if needs_bias:
                grad_bias += logits.sum(0, dtype=wide)
        count = (target != ignore_index).sum() if target.dim() == 1 else torch.tensor(len(x), device=x.device)
        ctx.save_for_backward(grad_x, grad_weight, grad_bias, count)
        ctx.dtype = x.dtype
        return torch.cat(losses).sum() / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # once_differentiable would pass silently: the gradient of a loss, 1, depends on nothing.
            raise RuntimeError("linear_cross_entropy: for second derivatives (create_graph) use backend='reference'")
        *grads, count = ctx.saved_tensors
        # One axis, so that what is narrower than the scale is multiplied in the dtype of the scale.
        scale = (grad / count.clamp(min=1)).view(1)
        scaled = [None if g is None else torch.mul(g, scale, out=torch.empty_like(g, dtype=ctx.dtype)) for g in grads]
        return *scaled, None, None, None, None


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    label_smoothing: float,
    ignore_index: int,
    *,
    softmax: Softmax,
) -> Tensor:
    """The operation with a given softmax; see omnitrunk.kernels.linear_cross_entropy."""
    dtype = gpu.autocast_dtype(x) or x.dtype
    x, weight = (tensor.to(dtype).contiguous() for tensor in (x, weight))
    bias = None if bias is None else bias.to(dtype)
    return _LinearCrossEntropy.apply(x, weight, bias, target.contiguous(), label_smoothing, ignore_index, softmax)
