"""The recorded files of MultiMAE, each kind recognized by its keys."""

from __future__ import annotations

from tests.parity.folder import Check, Recorded
from tests.parity.multimae import case, losses, montecarlo, positions, preprocessing, sampler, schedules


def find(files: list[Recorded]) -> list[Check]:
    """Every comparison that `files` allow, the pretraining cases first."""
    kinds = (case, sampler, montecarlo, losses, positions, preprocessing, schedules)
    return [check for kind in kinds for check in kind.find(files)]
