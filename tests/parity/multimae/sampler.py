"""Recorded runs of the mask sampler, all its random numbers included: ours must select the very same tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from omnitrunk.kernels.sample_mask import select_tokens
from omnitrunk.models import MultiMAEConfig
from omnitrunk.models.masking import mask_plan
from tests.parity.folder import Check, Recorded
from tests.parity.multimae.configuration import sampling_config
from tests.parity.report import Precision, Report

if TYPE_CHECKING:
    from tests.parity.multimae.case import Case

MARK = ".shuffle_noise"


def find(files: Iterable[Recorded]) -> list[Check]:
    """Files of traces: keys <trace>.shuffle_noise and so on, with one JSON object for each trace in the header."""
    return [
        Check(files=(file.name,), run=partial(_compare_file, file))
        for file in files
        if any(key.endswith(MARK) for key in file.content) and "ids_keep" not in file.content
    ]


def compare_case(case: Case, report: Report) -> set[str]:
    """The sampler's part of a pretraining case; returns the keys that were compared or used."""
    keys = {key: key.removeprefix("sampler.") for key in case.io if key.startswith(("sampler.", "mask.", "ids_"))}
    if "shuffle_noise" not in keys.values():
        return set()
    compare_draw(report, case.name, {short: case.io[key] for key, short in keys.items()}, case.config)
    return set(keys)


def compare_draw(report: Report, name: str, draw: Mapping[str, Tensor], config: MultiMAEConfig) -> None:
    """One recorded batch: concentrations and allocation by our own code, then the selection that its noise implies."""
    concentration, counts = _allocation(config, draw["proportions"], draw.get("task_subset_index"))
    report.close(name, "concentration", concentration, draw["concentration"].expand_as(concentration), 1e-6)
    report.equal(name, "samples_per_task", counts.long(), draw["samples_per_task"])
    noise = [draw[f"noise.{task}"] for task in config.inputs]
    sizes = tuple(values.shape[1] for values in noise)
    keep = draw["ids_keep"].shape[1]
    ids_keep, ids_restore, mask = select_tokens(counts, sizes, keep, torch.cat(noise, dim=1), draw["shuffle_noise"])
    report.equal(name, "ids_keep", ids_keep, draw["ids_keep"])
    report.equal(name, "ids_restore", ids_restore, draw["ids_restore"])
    for task, part in zip(config.inputs, mask.split(sizes, dim=1), strict=True):
        report.equal(name, f"mask.{task}", part.long(), draw[f"mask.{task}"])


def _compare_file(file: Recorded, report: Report, _: Precision) -> None:
    for trace in sorted(key.removesuffix(MARK) for key in file.content if key.endswith(MARK)):
        prefix = f"{trace}."
        draw = {key.removeprefix(prefix): value for key, value in file.content.items() if key.startswith(prefix)}
        compare_draw(report, f"{file.name} {trace}", draw, sampling_config(file.header(trace)))


def _allocation(config: MultiMAEConfig, proportions: Tensor, subset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Concentrations (B, T) and allocation (B, T) of our sampler when its random draws are the recorded ones."""
    subsets = 2 ** len(config.inputs) - 1
    chosen = np.zeros((len(proportions), 1)) if subset is None else (subset[:, None].numpy() + 0.5) / subsets
    with (
        mock.patch.object(mask_plan, "dirichlet", return_value=proportions.numpy()) as dirichlet,
        mock.patch.object(mask_plan, "uniform", return_value=chosen),
    ):
        counts = mask_plan.visible_counts(config, 0, np.arange(len(proportions)))
    concentration = np.ascontiguousarray(dirichlet.call_args.args[0])
    return torch.from_numpy(concentration), torch.from_numpy(counts)
