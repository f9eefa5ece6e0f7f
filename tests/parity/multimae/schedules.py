"""Recorded learning-rate and weight-decay schedules against the engine's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from omnitrunk.engine.schedule import warmup_cosine
from tests.parity.folder import Check, Recorded
from tests.parity.report import Report


def find(files: Iterable[Recorded]) -> list[Check]:
    return [
        Check(files=(file.name,), run=lambda report, _, file=file: compare(file, report))
        for file in files
        if isinstance(file.content.get("schedules"), list)
    ]


def compare(file: Recorded, report: Report) -> None:
    for number, schedule in enumerate(file.content["schedules"]):
        ours = warmup_cosine(**arguments(schedule["args"]))
        recorded = torch.tensor(schedule["values"], dtype=torch.float64)
        report.close_to_largest(file.name, f"schedule[{number}]", torch.from_numpy(ours), recorded, 1e-12)
    if "finetune_groups" in file.content:
        report.not_covered(file.name, "finetune_groups (parameter groups of fine-tuning)")


def arguments(recorded: dict[str, Any]) -> dict[str, Any]:
    """The recorded arguments count epochs; warm-up steps replace warm-up epochs, but only where those are positive."""
    per_epoch = recorded["niter_per_ep"]
    warmup = recorded.get("warmup_epochs", 0) * per_epoch
    if warmup and recorded.get("warmup_steps", 0) > 0:
        warmup = recorded["warmup_steps"]
    return {
        "base": recorded["base_value"],
        "final": recorded["final_value"],
        "steps": recorded["epochs"] * per_epoch,
        "warmup": warmup,
    }
