"""adamw_ through torch's multi-tensor functions, and the parts of it that other libraries' updates leave open."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omnitrunk.kernels.adamw.rule import Rule, clip_factor


def adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor],
    step: Tensor,
    rule: Rule,
) -> tuple[Tensor, Tensor]:
    """The operation with torch's fused update, on tensors of any one floating dtype; see omnitrunk.kernels.adamw."""
    norm, finite = count_step_(step, grads)
    if rule.max_norm is not None:
        # A copy: the fused update could scale by itself, but writes the scaled gradients back.
        grads = torch._foreach_mul(grads, clip_factor(norm, rule.max_norm))
    skip, updates = finite.logical_not().float(), step.float()
    for (lr, weight_decay), members in by_factors(rule).items():
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
    average_(emas, params, rule, finite)
    return norm, finite.logical_not()


def count_step_(step: Tensor, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The norm of all gradients and whether it is finite; only then is the step counted."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    finite = norm.isfinite()
    step.add_(finite)
    return norm, finite


def by_factors(rule: Rule) -> dict[tuple[float | Tensor, float], list[int]]:
    """Numbers of the tensors that share a learning rate and a weight decay."""
    groups: dict[tuple[float, float], list[int]] = {}
    for i, factors in enumerate(zip(rule.lr_scales, rule.weight_decays, strict=True)):
        groups.setdefault(factors, []).append(i)
    return {(rule.lr * scale, weight_decay): members for (scale, weight_decay), members in groups.items()}


def average_(emas: Sequence[Tensor], params: Sequence[Tensor], rule: Rule, finite: Tensor) -> None:
    """Move the averages, where there are any, towards the parameters."""
    if emas:
        change = torch._foreach_sub(params, emas)
        torch._foreach_mul_(change, (1 - rule.ema_decay) * finite.float())
        torch._foreach_add_(emas, change)
