"""A recorded pretraining case: weights, a forward pass and all that is in between, gradients, a short training run."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from omnitrunk.models import MaskPlan, MultiMAE, MultiMAEConfig, make_plan
from omnitrunk.models.official.state_dicts import from_official
from tests.parity.folder import Check, Recorded
from tests.parity.multimae import configuration, forward, gradients, sampler, training
from tests.parity.report import Precision, Report

MARKS: dict[str, Callable[[set[str]], bool]] = {
    "weights": lambda keys: any(key.startswith("output_adapters.") for key in keys),
    "io": lambda keys: "ids_keep" in keys and any(key.startswith("input.") for key in keys),
    "grads": lambda keys: any(key.startswith(("gradnorm.", "grad.")) for key in keys),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case in the precision of a run: recorded tensors, our model with these weights, its batch and its plan."""

    name: str
    recorded: dict[str, Any]
    io: dict[str, Tensor]
    grads: dict[str, Tensor]
    weights: dict[str, Tensor]
    header: dict[str, Any]
    precision: Precision

    @property
    def config(self) -> MultiMAEConfig:
        return configuration.model_config(self.recorded)

    @property
    def columns(self) -> list[str]:
        """What the columns of the recorded training losses are: outputs by name, then the total."""
        return self.header.get("train.losses columns") or [*sorted(self.config.outputs), "total"]

    def model(self, **changes: Any) -> MultiMAE:
        """Our model with the recorded weights; `changes` go to its configuration."""
        model = MultiMAE(replace(self.config, **changes)).to(self.precision.dtype)
        state = {key: value.to(self.precision.dtype) for key, value in self.weights.items()}
        model.load_state_dict(from_official(state, model.config))
        return model

    def plan(self, config: MultiMAEConfig) -> MaskPlan:
        """The plan of the recorded selection in its recorded order."""
        plan = make_plan(config, self.io["ids_keep"])
        if self.precision.dtype != torch.float64:
            return plan
        # The weights are reciprocals of integers, rounded to float32 on their way to the device.
        exact = {name: 1 / (1 / weight.double()).round() for name, weight in plan.masked_weight.items()}
        return replace(plan, masked_weight=exact)

    def batch(self) -> dict[str, Tensor]:
        """The recorded images, channels last; pixels are normalized already and class maps stay integers."""
        images = {key.removeprefix("input."): value for key, value in self.io.items() if key.startswith("input.")}
        return {
            name: image.permute(0, 2, 3, 1).to(self.precision.dtype).contiguous() if image.ndim == 4 else image
            for name, image in images.items()
        }


def find(files: Iterable[Recorded]) -> list[Check]:
    """Files that share a prefix, <prefix>_weights, <prefix>_io and (where recorded) <prefix>_grads, are one case."""
    groups: dict[str, dict[str, Recorded]] = defaultdict(dict)
    for file in files:
        prefix, _, kind = file.name.rpartition("_")
        if kind in MARKS and MARKS[kind](set(file.content)):
            groups[prefix][kind] = file
    return [
        Check(files=tuple(file.name for file in group.values()), run=partial(_compare_group, prefix, group))
        for prefix, group in groups.items()
    ]


def _compare_group(prefix: str, group: dict[str, Recorded], report: Report, precision: Precision) -> None:
    if lacking := [kind for kind in ("weights", "io") if kind not in group]:
        raise ValueError(f"the case {prefix} lacks {prefix}_{lacking[0]}.safetensors")
    case = Case(
        name=prefix,
        recorded=group["io"].header("config"),
        io=group["io"].content,
        grads=group["grads"].content if "grads" in group else {},
        weights=group["weights"].content,
        header=json.loads(group["io"].metadata.get("deviations", "{}")),
        precision=precision,
    )
    for field in configuration.unused_fields(case.recorded):
        report.not_covered(prefix, f"config field {field}")
    with configuration.strides(case.recorded):
        compare(case, report)


def compare(case: Case, report: Report) -> None:
    compared = sampler.compare_case(case, report)
    compared |= forward.compare(case, report)
    compared |= gradients.compare(case, report)
    compared |= training.compare(case, report)
    for key in sorted((case.io.keys() | case.grads.keys()) - compared):
        report.not_covered(case.name, key)
