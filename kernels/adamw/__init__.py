"""adamw_: one AdamW update of all parameters in place, with gradient clipping and a moving average of the weights.

    norm = ||all gradients||_2                   nothing below happens where it is not finite
    g    = grad * min(1, max_norm / (norm + 1e-6))
    m    = beta1 m + (1 - beta1) g               v = beta2 v + (1 - beta2) g^2               t = t + 1
    p    = p - lr' weight_decay p - lr' (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)     lr' = lr * lr_scale
    ema  = ema + (1 - ema_decay) (p - ema)

The clip factor is applied on the fly and gradients are never rewritten. Whether to skip is decided on the device, so
that a GPU is not waited for. Least traffic per float32 parameter: 4 bytes for the norm, 28 for the update, 8 for ema.
Sources: Loshchilov and Hutter 2019 (AdamW); Polyak and Juditsky 1992 (averaging); clipping as in torch.nn.utils.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnitrunk.kernels import native
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation

CLIP_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The numbers of an update: learning rate and weight decay of every tensor, and what all tensors share."""

    lrs: Sequence[float]
    weight_decays: Sequence[float]
    betas: tuple[float, float]
    eps: float
    max_norm: float | None
    ema_decay: float


def cost(parameters: int, *, bytes_per_gradient: int = 4, clip: bool = True, ema: bool = False) -> Cost:
    """Least work on float32 parameters: the gradient read twice (once without clip), the rest read and written."""
    rest = 24 + (8 if ema else 0)
    return Cost(
        bytes=parameters * (rest + (2 if clip else 1) * bytes_per_gradient),
        flop=parameters * (12 + (2 if clip else 0) + (3 if ema else 0)),
    )


def reference(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor],
    step: Tensor,
    rule: Rule,
) -> tuple[Tensor, Tensor]:
    """The definition; see the module's text for the formulas."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in grads]))
    finite, clip, (beta1, beta2) = norm.isfinite(), _clip_factor(norm, rule.max_norm), rule.betas
    step.add_(finite)
    correction1, correction2 = (1 - beta ** step.double() for beta in rule.betas)
    for i, (param, grad, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        g, lr = (grad * clip).to(param.dtype), rule.lrs[i]
        new_m = m + (1 - beta1) * (g - m)
        new_v = v * beta2 + (1 - beta2) * g * g
        change = (new_m / correction1) / ((new_v / correction2).sqrt() + rule.eps)
        new_param = (param * (1 - lr * rule.weight_decays[i]) - lr * change).to(param.dtype)
        updates = [(param, new_param), (m, new_m), (v, new_v)]
        if emas:
            updates.append((emas[i], emas[i] + (1 - rule.ema_decay) * (new_param - emas[i])))
        for old, new in updates:
            old.copy_(torch.where(finite, new, old))
    return norm.to(params[0].dtype), finite.logical_not()


OPERATION = Operation("adamw_", reference)


def _clip_factor(norm: Tensor, max_norm: float | None) -> Tensor:
    if max_norm is None:
        return torch.ones_like(norm)
    return (max_norm / (norm + CLIP_EPS)).clamp(max=1.0)


def _refuses(*lists_step_rule: Any) -> str | None:
    for tensor in itertools.chain.from_iterable(lists_step_rule[:5]):
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            return "updates contiguous float32 tensors only"
    return None


@OPERATION.backend(
    "cpu",
    devices=("cpu",),
    why="clip, update and moving average in one pass over memory",
    missing=native.missing_reason,
    refuses=_refuses,
)
def _cpu(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor],
    step: Tensor,
    rule: Rule,
) -> tuple[Tensor, Tensor]:
    norm = math.sqrt(native.squared_norm(grads))
    skipped = not math.isfinite(norm)
    if not skipped:
        step.add_(1)
        native.adamw(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            step=int(step),
            lrs=rule.lrs,
            weight_decays=rule.weight_decays,
            betas=rule.betas,
            eps=rule.eps,
            grad_scale=1.0 if rule.max_norm is None else min(1.0, rule.max_norm / (norm + CLIP_EPS)),
            emas=emas or None,
            ema_decay=rule.ema_decay,
        )
    return torch.tensor(norm), torch.tensor(skipped)


@OPERATION.backend("torch", devices=("cpu", "cuda"), why="torch's fused multi-tensor update", refuses=_refuses)
def _torch(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor],
    step: Tensor,
    rule: Rule,
) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    finite = norm.isfinite()
    step.add_(finite)
    if rule.max_norm is not None:
        # A copy: the fused update could scale by itself, but writes the scaled gradients back.
        grads = torch._foreach_mul(grads, _clip_factor(norm, rule.max_norm))
    skip, updates = finite.logical_not().float(), step.float()
    for (lr, weight_decay), members in _by_factors(rule).items():
        torch._fused_adamw_(
            *([tensors[i] for i in members] for tensors in (params, grads, exp_avgs, exp_avg_sqs)),
            max_exp_avg_sqs=[],
            state_steps=[updates] * len(members),
            lr=lr,
            beta1=rule.betas[0],
            beta2=rule.betas[1],
            weight_decay=weight_decay,
            eps=rule.eps,
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )
    if emas:
        change = torch._foreach_sub(params, emas)
        torch._foreach_mul_(change, (1 - rule.ema_decay) * finite.float())
        torch._foreach_add_(emas, change)
    return norm, finite.logical_not()


def _by_factors(rule: Rule) -> dict[tuple[float, float], list[int]]:
    """Numbers of the tensors that share a learning rate and a weight decay."""
    groups: dict[tuple[float, float], list[int]] = {}
    for i, factors in enumerate(zip(rule.lrs, rule.weight_decays, strict=True)):
        groups.setdefault(factors, []).append(i)
    return groups


@torch.no_grad()
def adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float | Sequence[float],
    lr_scale: Sequence[float] | None = None,
    max_norm: float | None = None,
    emas: Sequence[Tensor] | None = None,
    ema_decay: float = 0.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Update parameters, moments, step and moving averages in place; where the gradient norm is not finite, nothing.

    Lists of tensors in one order and of equal shapes; `step` a tensor of one number, the updates made so far, integer
    or floating; `weight_decay` one number or one per tensor, `lr_scale` a factor on `lr` per tensor, `max_norm` the
    norm beyond which gradients are scaled down (None: never), `emas` moving averages of the parameters.
    Returns the norm of the gradients before clipping, and whether the update was skipped (bool), as tensors without
    dimensions. Raises ValueError where the lists do not fit together.
    """
    count = len(params)
    rule = Rule(
        lrs=[lr] * count if lr_scale is None else [lr * scale for scale in lr_scale],
        weight_decays=[weight_decay] * count if isinstance(weight_decay, (int, float)) else weight_decay,
        betas=betas,
        eps=eps,
        max_norm=max_norm,
        ema_decay=ema_decay,
    )
    lists = [params, grads, exp_avgs, exp_avg_sqs, *([] if emas is None else [emas])]
    lengths = [len(values) for values in (*lists, rule.lrs, rule.weight_decays)]
    if count == 0 or set(lengths) != {count}:
        raise ValueError(f"adamw_ takes lists of one length, at least 1, not of {lengths}")
    return OPERATION.run(backend, params, grads, exp_avgs, exp_avg_sqs, emas or [], step, rule)
