"""adamw_ through NVIDIA apex: the multi-tensor kernel of FusedAdam that reads step, rate and skip flag on the device.

The kernel knows neither clipping by the norm of all gradients nor a moving average, and writes the gradients that it
has scaled back. Clipping, done on a copy, and the average go through torch's multi-tensor functions, so that the
operation keeps its promises: nothing changes where the norm is not finite, gradients stay, no wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omnitrunk.kernels import peers
from omnitrunk.kernels.adamw.multi_tensor import average_, by_factors, count_step_
from omnitrunk.kernels.adamw.rule import Rule, clip_factor
from omnitrunk.kernels.dispatch import Operation


def register(operation: Operation) -> None:
    """Add apex as a backend of `operation`; last, so that it is taken only where named."""
    refuses = operation.backends["torch"].refuses
    operation.backend(
        "apex", devices=("cuda",), why="apex's fused multi-tensor update", missing=_missing, refuses=refuses
    )(_apex)


@torch.compiler.assume_constant_result
def _missing() -> str | None:
    return peers.missing(peers.APEX_ADAM)


def _apex(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor],
    step: Tensor,
    rule: Rule,
) -> tuple[Tensor, Tensor]:
    norm, finite = count_step_(step, grads)
    scaled = torch._foreach_mul(grads, clip_factor(norm, rule.max_norm))
    for (lr, weight_decay), members in by_factors(rule).items():
        # An empty tensor at the end of its lists makes apex forget to launch for those before it.
        filled = [i for i in members if params[i].numel()]
        lists = [[tensors[i] for i in filled] for tensors in (scaled, params, exp_avgs, exp_avg_sqs)]
        if filled:
            _update(lists, finite, step, lr, weight_decay, rule)
    average_(emas, params, rule, finite)
    return norm, finite.logical_not()


def _update(
    lists: list[list[Tensor]], finite: Tensor, step: Tensor, lr: float, weight_decay: float, rule: Rule
) -> None:
    import amp_C
    from apex.multi_tensor_apply import multi_tensor_applier

    ones = torch.ones(1, device=finite.device)
    decoupled, bias_correction = 1, 1
    multi_tensor_applier(
        amp_C.multi_tensor_adam_capturable,
        finite.logical_not().to(torch.int32).reshape(1),
        lists,
        lr * ones,
        *rule.betas,
        rule.eps,
        step.to(torch.int32).reshape(1),
        decoupled,
        bias_correction,
        weight_decay,
        ones,
    )
