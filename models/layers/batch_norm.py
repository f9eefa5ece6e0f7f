"""Batch normalization of rows, some of which only serve its statistics (Ioffe and Szegedy 2015, section 3).

    y = (x - mean) / sqrt(variance + eps) * weight + bias

S sets, k rows of a set, Q sets that go on, C channels. Mean and variance are those of all S * k rows, also where only Q
of the sets are wanted. Several processes that train together share their statistics: as many GPUs compute what one
would on the whole batch. Every process must bring as many rows as the others. Micro-batches of one step do not share
them: where gradients are accumulated, each is normalized by its own, and the running ones move once for each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class BatchNorm(nn.Module):
    """Statistics of the batch where a step is made: in training mode and with gradients; else the running ones.

    So neither an evaluation nor a drawing during training changes the running statistics, or waits for other processes.
    """

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.zeros(1, dtype=torch.int64))

    @property
    def uses_batch(self) -> bool:
        """Whether a call now would take the statistics of the batch."""
        return self.training and torch.is_grad_enabled()

    def forward(self, x: Tensor, sets: Tensor | None = None) -> Tensor:
        """(S, k, C) -> (S, k, C), or (Q, k, C) for the `sets` int64 (Q,), each named once, which alone go on."""
        if not self.uses_batch:
            return _normalized(_take(x, sets), self.running_mean, self._scale(self.running_var), self.bias)
        mean, variance, rows = statistics(x.detach())
        self._track(mean, variance * (rows / max(rows - 1, 1)))
        return _BatchNorm.apply(x, self.weight, self.bias, sets, mean, (variance + self.eps).rsqrt(), rows)

    def _scale(self, variance: Tensor) -> Tensor:
        return (variance + self.eps).rsqrt() * self.weight

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked += 1


def statistics(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance, both (C,), over all rows (..., C) of all processes, and how many rows these are."""
    rows = x.numel() // x.shape[-1]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide.flatten(0, -2), dim=0, correction=0)
    if (size := _processes()) == 1:
        return mean, variance, rows
    own = torch.stack([mean, variance])
    of_all = [torch.empty_like(own) for _ in range(size)]
    distributed.all_gather(of_all, own)
    means, variances = torch.stack(of_all, dim=1)
    spread, mean = torch.var_mean(means, dim=0, correction=0)
    return mean, variances.mean(0) + spread, size * rows


class _BatchNorm(torch.autograd.Function):
    """Backward, with xhat the normalized x, over all rows of all processes, and dy = 0 where a row did not go on:

    dx = weight * rstd * (dy - mean(dy) - xhat * mean(dy * xhat))
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, sets: Tensor | None, mean: Tensor, rstd: Tensor, rows: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight, sets, mean, rstd)
        ctx.rows = rows
        return _normalized(_take(x, sets), mean, rstd * weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, sets, mean, rstd = ctx.saved_tensors
        wide = grad.to(mean.dtype)
        grad_bias = wide.sum((0, 1))
        # sum(dy * xhat) = rstd * sum(dy * (x - mean)), of the rows that went on
        grad_weight = rstd * (wide * (_take(x, sets) - mean)).sum((0, 1))
        shared = torch.stack([grad_bias, grad_weight])
        if _processes() > 1:
            distributed.all_reduce(shared)
        mean_grad, slope = shared / ctx.rows
        scale = rstd * weight
        # What every row gets through the statistics is linear in x: -scale * (mean(dy) + xhat * mean(dy * xhat)).
        slope = -scale * rstd * slope
        grad_x = torch.addcmul(-scale * mean_grad - slope * mean, x, slope).to(x.dtype)
        whole = _take(grad_x, sets) + (wide * scale).to(x.dtype)
        grad_x = whole if sets is None else grad_x.index_copy_(0, sets, whole)
        return grad_x, grad_weight, grad_bias, None, None, None, None


def _normalized(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return torch.addcmul(bias - mean * scale, x, scale).to(x.dtype)


def _take(x: Tensor, sets: Tensor | None) -> Tensor:
    return x if sets is None else x.index_select(0, sets)


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
