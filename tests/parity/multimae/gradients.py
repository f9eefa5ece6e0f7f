"""Recorded gradients of the total loss, under the release's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnitrunk.models import MultiMAE
from omnitrunk.models.official.state_dicts import to_official
from tests.parity.report import Report

if TYPE_CHECKING:
    from tests.parity.multimae.case import Case


def compare(case: Case, report: Report) -> set[str]:
    """Rows for every recorded gradient and gradient norm; returns their keys."""
    recorded = {key: value for key, value in case.grads.items() if key.startswith(("grad.", "gradnorm."))}
    if not recorded:
        return set()
    model = case.model()
    model(case.batch(), case.plan(model.config))["loss"].backward()
    gradients = official_named(model, {name: gradient(value) for name, value in model.named_parameters()})
    for key, expected in sorted(recorded.items()):
        kind, _, name = key.partition(".")
        if name not in gradients:
            raise ValueError(f"{key} names no parameter of the model")
        if kind == "grad":
            report.close_to_largest(case.name, key, gradients[name], expected, case.precision.gradient)
        else:
            norm = gradients[name].double().norm().reshape(1)
            report.close_to_largest(case.name, key, norm, expected, case.precision.gradient_norm)
    return set(recorded)


def gradient(parameter: Tensor) -> Tensor:
    """A parameter that no loss depends on has a gradient of zero."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def official_named(model: MultiMAE, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor for each of our parameters, by the release's names and shapes."""
    tables = {name: torch.zeros_like(buffer) for name, buffer in model.state_dict().items() if name not in values}
    return to_official({**tables, **values}, model.config)
