"""adamw_: one AdamW update of all parameters in place, and all that goes with it in the same pass over memory.

    norm = ||all gradients||_2                   nothing below happens where it is not finite
    g    = grad * min(1, max_norm / (norm + 1e-6))
    m    = beta1 m + (1 - beta1) g               v = beta2 v + (1 - beta2) g^2               t = t + 1
    p    = p - lr' weight_decay p - lr' (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)     lr' = lr * lr_scale
    ema  = ema + (1 - ema_decay) (p - ema)       cast = p, rounded to nearest, ties to even

The clip factor is applied on the fly and gradients are never rewritten. Whether to skip is decided on the device, so
that a GPU is not waited for. Of a weight that is joined with others, W + sum_i lambda_i W'_i, only the gradient G of
the sum is given (see Pathway): dW = G, dW'_i = lambda_i G, dlambda_i = <G, W'_i> are never written out, with

    norm^2 = sum (1 + sum_i lambda_i^2) ||G||^2 + sum_i <G, W'_i>^2         effective = W + sum_i lambda_i W'_i, updated

Least traffic per float32 parameter: 4 bytes for the norm, 28 for the update, 8 for ema, 2 for a cast in half precision;
62 in all for a joined pair of weights with its effective weight.
Sources: Loshchilov and Hutter 2019 (AdamW); Polyak and Juditsky 1992 (averaging); clipping as in torch.nn.utils; Zhang
et al. 2024, Multimodal Pathway (M2PT), section 3.2 (joined weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from omnitrunk.kernels import gpu, native
from omnitrunk.kernels.adamw import multi_tensor, peers
from omnitrunk.kernels.adamw.rule import Pathway, Rule, check, clip_factor, combined, materialize
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation

__all__ = ["Pathway", "Rule", "adamw_", "cost", "reference"]


def cost(
    parameters: int,
    *,
    bytes_per_gradient: int = 4,
    clip: bool = True,
    ema: bool = False,
    bytes_per_cast: int = 0,
    auxiliaries: int = 0,
    frozen_bytes: int = 0,
    effective_bytes: int = 0,
) -> Cost:
    """Least work on float32 parameters: the gradient read twice (once without clip), the rest read and written.

    `parameters` have gradients of their own. Pathways add `auxiliaries`, the elements of auxiliary weights that learn,
    read once more for their scales; `frozen_bytes` of those that do not, read twice; and `effective_bytes` written.
    """
    state = 24 + (8 if ema else 0) + bytes_per_cast
    passes = 2 if clip or auxiliaries or frozen_bytes else 1
    learned = parameters + auxiliaries
    return Cost(
        bytes=learned * state
        + parameters * passes * bytes_per_gradient
        + auxiliaries * 4
        + frozen_bytes * 2
        + effective_bytes,
        flop=learned * (12 + (3 if ema else 0)) + parameters * 2 * (passes - 1) + auxiliaries * 5,
    )


def reference(
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
    """The definition; see the module's text for the formulas. Gradients that follow from others are written out."""
    grads = materialize(params, grads, pathways)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in grads]))
    finite, clip, (beta1, beta2) = norm.isfinite(), clip_factor(norm, rule.max_norm), rule.betas
    step.add_(finite)
    correction1, correction2 = (1 - beta ** step.double() for beta in rule.betas)
    for i, (param, grad, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        g, lr = (grad.to(param.dtype) * clip).to(param.dtype), rule.lr * rule.lr_scales[i]
        new_m = m + (1 - beta1) * (g - m)
        new_v = v * beta2 + (1 - beta2) * g * g
        change = (new_m / correction1) / ((new_v / correction2).sqrt() + rule.eps)
        new_param = (param * (1 - lr * rule.weight_decays[i]) - lr * change).to(param.dtype)
        updates = [(param, new_param), (m, new_m), (v, new_v)]
        if emas:
            updates.append((emas[i], emas[i] + (1 - rule.ema_decay) * (new_param - emas[i])))
        if casts and casts[i] is not None:
            updates.append((casts[i], new_param.to(casts[i].dtype)))
        _write(updates, finite)
    made = [pathway for pathway in pathways if pathway.effective is not None]
    _write([(pathway.effective, combined(params, pathway)) for pathway in made], finite)
    return norm.to(params[0].dtype), finite.logical_not()


OPERATION = Operation("adamw_", reference)


def _write(updates: Sequence[tuple[Tensor, Tensor]], finite: Tensor) -> None:
    for old, new in updates:
        old.copy_(torch.where(finite, new.to(old.dtype), old))


def _refuses(
    *lists_step_rule: Any, casts: Sequence[Tensor | None] = (), pathways: Sequence[Pathway] = ()
) -> str | None:
    tensors = [tensor for tensors in lists_step_rule[:5] for tensor in tensors if tensor is not None]
    if not set(map(attrgetter("dtype"), tensors)) <= {torch.float32} or not all(map(Tensor.is_contiguous, tensors)):
        return "updates contiguous float32 tensors only"
    frozen = [part for pathway in pathways for part in pathway.auxiliaries if isinstance(part, Tensor)]
    for tensor in (*casts, *frozen, *(pathway.effective for pathway in pathways)):
        if tensor is not None and (tensor.dtype not in native.FORMATS or not tensor.is_contiguous()):
            return "takes and writes contiguous float32, bfloat16 and float16 tensors only"
    return None


def _plain_only(*lists_step_rule: Any, **extras: Any) -> str | None:
    return "knows neither casts nor pathways" if extras else _refuses(*lists_step_rule)


def _triton_refuses(*lists_step_rule: Any, **extras: Any) -> str | None:
    from omnitrunk.kernels.adamw import triton_update

    return triton_update.refuses(*lists_step_rule, **extras)


@OPERATION.backend(
    "triton",
    devices=gpu.DEVICES,
    why="four launches: one pass for the norm, one for everything else (predicted to be the fastest)",
    missing=gpu.missing,
    refuses=_triton_refuses,
)
def _triton(*lists_step_rule: Any, **extras: Any) -> tuple[Tensor, Tensor]:
    from omnitrunk.kernels.adamw import triton_update

    return triton_update.adamw(*lists_step_rule, **extras)


@OPERATION.backend(
    "cpu",
    devices=("cpu",),
    why="one pass over memory for the norm and one for everything else",
    missing=native.missing_reason,
    refuses=_refuses,
)
def _cpu(*lists_step_rule: Any, **extras: Any) -> tuple[Tensor, Tensor]:
    from omnitrunk.kernels.adamw import cpu

    return cpu.adamw(*lists_step_rule, **extras)


OPERATION.backend("torch", devices=("cpu", "cuda"), why="torch's fused multi-tensor update", refuses=_plain_only)(
    multi_tensor.adamw
)
peers.register(OPERATION)


@torch.no_grad()
def adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float | Sequence[float],
    lr_scale: Sequence[float] | None = None,
    max_norm: float | None = None,
    emas: Sequence[Tensor] | None = None,
    ema_decay: float = 0.0,
    casts: Sequence[Tensor | None] | None = None,
    pathways: Sequence[Pathway] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Update parameters, moments, step, averages, casts in place; where the gradient norm is not finite, nothing.

    Lists of tensors in one order and of equal shapes; `step` a tensor of one number, the updates made so far, integer
    or floating; `lr` a number, or a float32 tensor of one on the parameters' device, which a captured CUDA graph reads
    at every replay; `weight_decay` one number or one per tensor, `lr_scale` a factor on `lr` per tensor, `max_norm` the
    norm beyond which gradients are scaled down (None: never), `emas` moving averages of the parameters, `casts` copies
    of them in another dtype (None: no copy), `pathways` say which gradients are None and follow from others.
    Returns the norm of the gradients before clipping, and whether the update was skipped (bool), as tensors without
    dimensions. Raises ValueError where the lists do not fit together.
    """
    count = len(params)
    rule = Rule(
        lr=lr,
        lr_scales=[1.0] * count if lr_scale is None else lr_scale,
        weight_decays=[weight_decay] * count if isinstance(weight_decay, (int, float)) else weight_decay,
        betas=betas,
        eps=eps,
        max_norm=max_norm,
        ema_decay=ema_decay,
    )
    optional = [values for values in (emas, casts) if values is not None]
    lists = [params, grads, exp_avgs, exp_avg_sqs, *optional, rule.lr_scales, rule.weight_decays]
    lengths = [len(values) for values in lists]
    if count == 0 or set(lengths) != {count}:
        raise ValueError(f"adamw_ takes lists of one length, at least 1, not of {lengths}")
    check(params, grads, pathways or ())
    # Only given where asked for: backends without them need not know the words.
    extras = {"casts": casts, "pathways": pathways}
    given = {name: values for name, values in extras.items() if values}
    return OPERATION.run(backend, params, grads, exp_avgs, exp_avg_sqs, emas or [], step, rule, **given)
