"""A recorded training run of a few steps: AdamW on one batch with one plan, weight decay on all parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnitrunk.kernels.adamw import adamw_
from omnitrunk.models import MultiMAE
from tests.parity.multimae.gradients import gradient, official_named
from tests.parity.report import Report

if TYPE_CHECKING:
    from tests.parity.multimae.case import Case

BETAS, EPS, WEIGHT_DECAY = (0.9, 0.95), 1e-8, 0.05
FINAL = "train.final_param_norm."


def compare(case: Case, report: Report) -> set[str]:
    """Rows for losses, gradient norms and the final parameters' norms; returns the keys that were compared or used."""
    recorded = {key: value for key, value in case.grads.items() if key.startswith("train.")}
    if not recorded:
        return set()
    model, precision = case.model(), case.precision
    losses, norms = train(case, model, recorded["train.lr"].tolist())
    for number, column in enumerate(case.columns):
        expected = recorded["train.losses"][:, number]
        report.close_to_largest(case.name, f"train.losses.{column}", losses[:, number], expected, precision.loss)
    report.close_to_largest(case.name, "train.grad_norm", norms, recorded["train.grad_norm"], precision.gradient_norm)
    weights = official_named(model, {name: value.detach() for name, value in model.named_parameters()})
    for key in sorted(key for key in recorded if key.startswith(FINAL)):
        norm = weights[key.removeprefix(FINAL)].double().norm().reshape(1)
        report.close_to_largest(case.name, key, norm, recorded[key], precision.trained_norm)
    return {key for key in recorded if key.startswith(FINAL)} | {"train.lr", "train.losses", "train.grad_norm"}


def train(case: Case, model: MultiMAE, rates: list[float]) -> tuple[Tensor, Tensor]:
    """Losses (steps, columns) before each step and gradient norms (steps,); the model is trained in place."""
    batch, plan = case.batch(), case.plan(model.config)
    parameters = list(model.parameters())
    moments = [[torch.zeros_like(parameter) for parameter in parameters] for _ in range(2)]
    step, losses, norms = torch.zeros((), dtype=case.precision.dtype), [], []
    for lr in rates:
        model.zero_grad()
        values = model(batch, plan)
        values["loss"].backward()
        norm, _ = adamw_(
            [parameter.detach() for parameter in parameters],
            [gradient(parameter) for parameter in parameters],
            *moments,
            step,
            lr=lr,
            betas=BETAS,
            eps=EPS,
            weight_decay=WEIGHT_DECAY,
            max_norm=None,
        )
        values["total"] = values.pop("loss")
        losses.append(torch.stack([values[column].detach() for column in case.columns]))
        norms.append(norm.reshape(()))
    return torch.stack(losses), torch.stack(norms)
