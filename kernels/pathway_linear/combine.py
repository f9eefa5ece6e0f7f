"""combine_weights: the effective weights W + sum_i lambda_i W'_i of many layers, computed once and kept until stale.

A combination is stale as soon as the version of any tensor that it was made of has changed, or its memory has moved:
optimizers, checkpoint loads, swaps of averaged weights and edits by hand all count. (Writing through `tensor.data` is
the one thing that torch does not count; nobody can see it.) All stale layers of a call are combined in one launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from omnitrunk.kernels import gpu
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation


@dataclass(frozen=True)
class Pathway:
    """One joined layer: weight W (N, K), auxiliary weights W'_i (N, K), and their factors lambda_i, of one element."""

    weight: Tensor
    auxiliaries: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not self.auxiliaries or len(self.auxiliaries) != len(self.scales):
            raise ValueError(f"a pathway takes one scale for each of its {len(self.auxiliaries)} auxiliary weights")
        if any(auxiliary.shape != self.weight.shape for auxiliary in self.auxiliaries):
            shapes = [tuple(tensor.shape) for tensor in (self.weight, *self.auxiliaries)]
            raise ValueError(f"a pathway joins weights of one shape, not {shapes}")
        if any(scale.numel() != 1 for scale in self.scales):
            raise ValueError("the scale of a pathway is a single number")

    @cached_property
    def others(self) -> tuple[Tensor, ...]:
        """All tensors but the weight."""
        return (*self.auxiliaries, *self.scales)

    def versions(self) -> tuple[tuple[int, int, int], ...]:
        """What changes when any of the tensors does."""
        return tuple([(id(one), one.data_ptr(), one._version) for one in (self.weight, *self.others)])


def cost(elements: int, *, auxiliaries: int = 1, bytes_per_element: int = 4, bytes_per_result: int = 2) -> Cost:
    """Least work: every weight read once, the result written once."""
    moved = (1 + auxiliaries) * bytes_per_element + bytes_per_result
    return Cost(bytes=elements * moved, flop=2 * auxiliaries * elements)


@torch.no_grad()
def reference(pathways: Sequence[Pathway], results: Sequence[Tensor]) -> None:
    """The definition: each result becomes W + sum_i lambda_i W'_i, summed in float32 or wider, rounded once."""
    for pathway, result in zip(pathways, results, strict=True):
        wide = torch.promote_types(pathway.weight.dtype, torch.float32)
        total = pathway.weight.to(wide)
        for auxiliary, scale in zip(pathway.auxiliaries, pathway.scales, strict=True):
            # Product and sum rounded one after the other, as adamw_ does: a run that is resumed combines here what the
            # optimizer wrote in the run that went on.
            total = total + scale.to(wide) * auxiliary.to(wide)
        result.copy_(total)


OPERATION = Operation("combine_weights", reference)


def _refuses(pathways: Sequence[Pathway], results: Sequence[Tensor]) -> str | None:
    for pathway, result in zip(pathways, results, strict=True):
        weights = (pathway.weight, *pathway.auxiliaries)
        if any(tensor.dtype != weights[0].dtype for tensor in weights) or weights[0].dtype == torch.float64:
            return "takes weights of one dtype, up to float32"
        if not all(tensor.is_contiguous() for tensor in (*weights, result)):
            return "takes contiguous weights"
        if any(scale.dtype != torch.float32 for scale in pathway.scales):
            return "takes scales in float32"
    return None


@OPERATION.backend("triton", devices=gpu.DEVICES, why="all layers in one launch", missing=gpu.missing, refuses=_refuses)
@torch.no_grad()
def _triton(pathways: Sequence[Pathway], results: Sequence[Tensor]) -> None:
    from omnitrunk.kernels.pathway_linear import triton_combine

    triton_combine.combine(pathways, results)


@dataclass
class _Kept:
    result: Tensor
    versions: tuple[tuple[int, int, int], ...]


_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Weight -> {dtype of the result: what is kept}; entries go with their weight."""


def combine_weights(
    pathways: Sequence[Pathway], dtype: torch.dtype | None = None, *, backend: str = "auto"
) -> list[Tensor]:
    """The effective weights W + sum_i lambda_i W'_i, (N, K) each, in `dtype` (that of W when left out).

    What is already there and not stale is returned as it is: callers share the result and must not write to it. Not
    differentiable; `effective_weight` is.
    """
    results = [_result(pathway, dtype or pathway.weight.dtype) for pathway in pathways]
    stale = [i for i, kept in enumerate(results) if kept.versions != pathways[i].versions()]
    if stale:
        chosen = [pathways[i] for i in stale]
        OPERATION.run(backend, chosen, [results[i].result for i in stale])
        for i in stale:
            results[i].versions = pathways[i].versions()
    return [kept.result for kept in results]


def written(pathway: Pathway, dtype: torch.dtype | None = None) -> None:
    """Declare that the kept result was just brought up to date by somebody else: the paired optimizer."""
    kept = _result(pathway, dtype or pathway.weight.dtype)
    kept.versions = pathway.versions()


def _result(pathway: Pathway, dtype: torch.dtype) -> _Kept:
    by_dtype = _kept.setdefault(pathway.weight, {})
    kept = by_dtype.get(dtype)
    if kept is None or kept.result.device != pathway.weight.device:
        result = torch.empty_like(pathway.weight, dtype=dtype, requires_grad=False)
        kept = by_dtype[dtype] = _Kept(result, ())
    return kept


class _EffectiveWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pathway: Pathway, dtype: torch.dtype, paired: bool, weight: Tensor, *others: Tensor
    ) -> Tensor:
        (result,) = combine_weights([pathway], dtype)
        ctx.save_for_backward(*others)
        ctx.paired, ctx.dtype = paired, weight.dtype
        # Autograd's own handle on the kept memory: one version counter, so that a write before backward is noticed.
        return result.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        others, grad = ctx.saved_tensors, grad.to(ctx.dtype)
        count = len(others) // 2
        auxiliaries, scales, needs = others[:count], others[count:], ctx.needs_input_grad[4:]
        grads: list[Tensor | None] = [None] * (2 * count)
        for i, (auxiliary, scale) in enumerate(zip(auxiliaries, scales, strict=True)):
            if needs[i] and not ctx.paired:
                grads[i] = (grad * scale).to(auxiliary.dtype)
            if needs[count + i] and not ctx.paired:
                product = torch.dot(grad.flatten().to(auxiliary.dtype), auxiliary.flatten())
                grads[count + i] = product.to(scale.dtype).view(scale.shape)
        return None, None, None, grad, *grads


def effective_weight(pathway: Pathway, dtype: torch.dtype | None = None, *, paired: bool = False) -> Tensor:
    """The kept combination (N, K) in `dtype`, differentiable: dW = G, dW'_i = lambda_i G, dlambda_i = <G, W'_i>.

    With `paired`, the auxiliary weights and scales get no gradients here: adamw_(pathways=...) derives them from G, and
    neither memory nor time is spent on them.
    """
    return _EffectiveWeight.apply(pathway, dtype or pathway.weight.dtype, paired, pathway.weight, *pathway.others)
