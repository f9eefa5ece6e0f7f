"""pathway_linear: a linear layer whose weight is joined with those of other models (re-parameterized).

    y = x (W + sum_i lambda_i W'_i)^T + b

x (..., K), W and W'_i (N, K), lambda_i one number each, b (N,) -> y (..., N). Backward, with G = dy^T x: dW = G,
dW'_i = lambda_i G, dlambda_i = <G, W'_i>, dx = dy (W + sum_i lambda_i W'_i), db = column sums of dy.

Three ways: "cached" multiplies by a combined weight that is kept until one of its parts changes, so that a step
combines once and its products are those of a plain linear layer; "triton" combines inside the product, tile by tile;
the definition combines in every call. The second reads both weights for every tile of rows, and can only win where rows
are few.
Source: Zhang et al. 2024, Multimodal Pathway (M2PT), section 3.2, cross-modal re-parameterization.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels import gpu
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.linear import cost as linear_cost
from omnitrunk.kernels.linear import linear
from omnitrunk.kernels.pathway_linear.combine import Pathway, combine_weights, effective_weight, written

__all__ = ["Pathway", "combine_weights", "cost", "effective_weight", "pathway_linear", "reference", "written"]


def cost(rows: int, inputs: int, outputs: int, *, bytes_per_element: int = 2, backward: bool = False) -> Cost:
    """Least work with a combined weight that is current: that of a plain linear layer.

    What the joined weights add belongs to the step, not to the call: omnitrunk.kernels.pathway_linear.combine.cost, or
    what adamw_ moves for a pathway.
    """
    return linear_cost(rows, inputs, outputs, bytes_per_element=bytes_per_element, backward=backward)


def reference(x: Tensor, pathway: Pathway, bias: Tensor | None = None, paired: bool = False) -> Tensor:
    """The definition; `paired` leaves the gradients of auxiliary weights and scales to the optimizer."""
    weight = pathway.weight
    for auxiliary, scale in zip(pathway.auxiliaries, pathway.scales, strict=True):
        weight = weight + (scale.detach() * auxiliary.detach() if paired else scale * auxiliary)
    return functional.linear(x, weight, bias)


OPERATION = Operation("pathway_linear", reference)


def _few_rows(x: Tensor, *_others: object) -> str | None:
    most = gpu.settings("pathway_linear", "crossover", 0)["rows"]
    return f"{x.numel() // x.shape[-1]} rows are few" if x.numel() <= most * x.shape[-1] else None


def _triton_refuses(x: Tensor, pathway: Pathway, bias: Tensor | None = None, paired: bool = False) -> str | None:
    if len(pathway.auxiliaries) > 1:
        return "joins one auxiliary weight"
    return "computes in float32 or narrower" if x.dtype == torch.float64 else None


@OPERATION.backend(
    "cached",
    devices=("cpu", "cuda"),
    why="combines once a step, then as fast as a plain linear layer",
    yields=_few_rows,
)
def _cached(x: Tensor, pathway: Pathway, bias: Tensor | None = None, paired: bool = False) -> Tensor:
    return linear(x, effective_weight(pathway, gpu.autocast_dtype(x) or x.dtype, paired=paired), bias)


@OPERATION.backend(
    "triton",
    devices=gpu.DEVICES,
    why="few rows: to combine in the product moves less than to combine first (predicted)",
    missing=gpu.missing,
    refuses=_triton_refuses,
)
def _triton(x: Tensor, pathway: Pathway, bias: Tensor | None = None, paired: bool = False) -> Tensor:
    from omnitrunk.kernels.pathway_linear import triton_linear

    return triton_linear.pathway_linear(x, pathway, bias, paired)


def pathway_linear(
    x: Tensor,
    weight: Tensor,
    auxiliaries: Tensor | Sequence[Tensor],
    scales: Tensor | Sequence[Tensor],
    bias: Tensor | None = None,
    *,
    paired: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Multiply x by (weight + sum_i scale_i auxiliary_i) transposed and add `bias`.

    x (..., K) floating, weight and every auxiliary (N, K), every scale a tensor of one element, bias (N,) -> (..., N).
    Differentiable in all of them; with `paired` the auxiliaries and scales get no gradients, because adamw_ with
    `pathways` derives them from that of the weight. Raises ValueError where shapes do not fit together.
    """
    auxiliaries = (auxiliaries,) if isinstance(auxiliaries, Tensor) else tuple(auxiliaries)
    scales = (scales,) if isinstance(scales, Tensor) else tuple(scales)
    pathway = Pathway(weight, auxiliaries, scales)
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"pathway_linear: weight {tuple(weight.shape)} does not match the last axis of {tuple(x.shape)}"
        )
    return OPERATION.run(backend, x, pathway, bias, paired)
