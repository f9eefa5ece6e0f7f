"""adamw_ on CPUs: one compiled pass over the gradients for the norm, one over everything for the update."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from omnitrunk.kernels import native
from omnitrunk.kernels.adamw.rule import CLIP_EPS, Pathway, Rule


def adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor],
    step: Tensor,
    rule: Rule,
    casts: Sequence[Tensor | None] = (),
    pathways: Sequence[Pathway] = (),
) -> tuple[Tensor, Tensor]:
    """The operation on contiguous float32 tensors; see omnitrunk.kernels.adamw."""
    before = [pathway.factors(params) for pathway in pathways]
    square, products = _norm_pass(params, grads, pathways, before)
    norm = math.sqrt(square)
    skipped = not math.isfinite(norm)
    if not skipped:
        step.add_(1)
        numbers = {
            "step": int(step),
            "betas": rule.betas,
            "eps": rule.eps,
            "grad_scale": 1.0 if rule.max_norm is None else min(1.0, rule.max_norm / (norm + CLIP_EPS)),
            "ema_decay": rule.ema_decay,
        }
        state = {"params": params, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "lrs": rule.lrs}
        state |= {"weight_decays": rule.weight_decays, **({"emas": emas} if emas else {})}
        state |= {"casts": casts} if casts else {}
        if products:
            # The scales go first: effective weights are made of the new ones.
            scales = {name: [values[place] for place in products] for name, values in state.items()}
            native.adamw(**scales, grads=[torch.tensor([product]) for product in products.values()], **numbers)
        joined = [_joined(params, pathway, old) for pathway, old in zip(pathways, before, strict=True)]
        native.adamw(**state, grads=grads, joined=joined, **numbers)
    return torch.tensor(norm), torch.tensor(skipped)


def _norm_pass(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    pathways: Sequence[Pathway],
    factors: Sequence[Sequence[float]],
) -> tuple[float, dict[int, float]]:
    """The squared norm of all gradients, derived ones too, and place of a scale -> its gradient <G, W'>."""
    given = [place for place, grad in enumerate(grads) if grad is not None]
    partners = {
        pathway.weight: [aux for aux, scale in pathway.tensors(params) if isinstance(scale, int)]
        for pathway in pathways
    }
    rows = native.gradient_products([grads[place] for place in given], [partners.get(place, ()) for place in given])
    square, sums = sum(row[0] for row in rows), dict(zip(given, rows, strict=True))
    gradients: dict[int, float] = {}
    for pathway, scales in zip(pathways, factors, strict=True):
        own, *products = sums[pathway.weight]
        gradients |= dict(zip((scale for scale in pathway.scales if isinstance(scale, int)), products, strict=True))
        trained = [scale for scale, aux in zip(scales, pathway.auxiliaries, strict=True) if isinstance(aux, int)]
        square += own * sum(scale * scale for scale in trained)
    return square + sum(value * value for value in gradients.values()), gradients


def _joined(params: Sequence[Tensor], pathway: Pathway, before: Sequence[float]) -> native.Joined:
    after = pathway.factors(params)
    trained = {aux: old for aux, old in zip(pathway.auxiliaries, before, strict=True) if isinstance(aux, int)}
    terms = [(aux, new) for (aux, _), new in zip(pathway.tensors(params), after, strict=True)]
    return native.Joined(pathway.weight, trained, terms, pathway.effective)
