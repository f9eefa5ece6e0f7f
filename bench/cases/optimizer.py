"""The whole update of a step: clip by the global norm, AdamW, moving average, copies in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from omnitrunk.bench.case import OURS, Case
from omnitrunk.kernels import adamw_
from omnitrunk.kernels.adamw import cost

BETAS, EPS, LR, WEIGHT_DECAY, MAX_NORM, EMA_DECAY = (0.9, 0.95), 1e-8, 1e-4, 0.05, 1.0, 0.999


@dataclass(frozen=True)
class Weights:
    """Parameters with gradients, moments, averages and low-precision copies."""

    params: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    averages: list[Tensor]
    casts: list[Tensor]

    @staticmethod
    def make(shapes: list[tuple[int, ...]], device: str) -> Weights:
        """Random weights and gradients, moments at zero; the same for every contender."""
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(device)
        zeros = [[torch.zeros_like(param) for param in params] for _ in range(2)]
        return Weights(params, *zeros, [p.clone() for p in params], [p.bfloat16() for p in params])


def cases(device: str, quick: bool) -> list[Case]:
    """ViT-B on GPUs, ViT-S on CPUs, a single block in a quick run; with and without copies in bfloat16."""
    width, depth = (768, 12) if device == "cuda" else (384, 1 if quick else 13)
    return [_case(vit_shapes(width, depth), device, casts) for casts in (False, True)]


def vit_shapes(width: int, depth: int) -> list[tuple[int, ...]]:
    """Parameter shapes of a ViT's blocks and a head of 1,000 classes."""
    block = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return block * depth + [(1000, width), (1000,)]


def _case(shapes: list[tuple[int, ...]], device: str, casts: bool) -> Case:
    chains = {
        OURS: our_update(Weights.make(shapes, device), casts),
        "torch, fused and foreach": torch_update(Weights.make(shapes, device), casts, fused=True),
        "torch, default": torch_update(Weights.make(shapes, device), casts, fused=False),
    }
    count = sum(param.numel() for param in Weights.make(shapes, "cpu").params)
    least = cost(count, ema=True)
    return Case(
        operation="adamw_",
        shape=f"{count / 1e6:.1f}M parameters, clip, EMA{', bfloat16 copies' if casts else ''}",
        inputs=lambda seed: (),
        contenders=chains,
        forward=least if not casts else type(least)(bytes=least.bytes + 2 * count, flop=least.flop),
    )


def torch_update(weights: Weights, casts: bool, *, fused: bool) -> Callable[[], None]:
    """Clip, AdamW, moving average and copies with torch's own calls; foreach forms with `fused`, loops without."""
    options = {"fused": True} if fused else {"foreach": False}
    optimizer = torch.optim.AdamW(weights.params, LR, BETAS, EPS, WEIGHT_DECAY, **options)

    @torch.no_grad()
    def update() -> None:
        # As a training step finds them: clipping writes to the gradients, so that a second one has nothing to do.
        torch.nn.utils.clip_grad_norm_(weights.params, MAX_NORM, foreach=fused)
        optimizer.step()
        if fused:
            torch._foreach_lerp_(weights.averages, weights.params, 1 - EMA_DECAY)
            if casts:
                torch._foreach_copy_(weights.casts, weights.params)
            return
        for average, cast, param in zip(weights.averages, weights.casts, weights.params, strict=True):
            average.lerp_(param, 1 - EMA_DECAY)
            if casts:
                cast.copy_(param)

    return update


def our_update(weights: Weights, casts: bool) -> Callable[[], None]:
    """The same in one call."""
    step = torch.zeros((), dtype=torch.int64, device=weights.params[0].device)
    hyper = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY, "max_norm": MAX_NORM}
    extra = {"casts": weights.casts} if casts else {}

    @torch.no_grad()
    def update() -> None:
        grads = [param.grad for param in weights.params]
        lists = (weights.params, grads, weights.first, weights.second)
        adamw_(*lists, step, **hyper, emas=weights.averages, ema_decay=EMA_DECAY, **extra)

    return update
