"""Recorded statistics of many draws of the mask sampler against as many draws of ours, from a fresh seed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnitrunk.kernels.sample_mask import sample_mask
from omnitrunk.models.masking.mask_plan import visible_counts
from tests.parity.folder import Check, Recorded
from tests.parity.multimae.configuration import sampling_config
from tests.parity.multimae.statistics import mean_distance, surprise
from tests.parity.report import Precision, Report

# About a hundred tests run on a fresh seed: each may be wrong once in 10^7 runs.
LEAST_LIKELY = 7.0
STANDARD_ERRORS = 5.5
CHUNK = 2000


def find(files: Iterable[Recorded]) -> list[Check]:
    """JSON files of settings with "draws" and "per_task"; histograms <setting>.hist.<task> may be in any file."""
    files = list(files)
    histograms = {file.name: file.content for file in files if any(".hist." in key for key in file.content)}
    merged = {key: value for content in histograms.values() for key, value in content.items()}
    return [
        Check(files=(file.name, *histograms), run=partial(compare, file, merged))
        for file in files
        if file.content and all(_is_setting(value) for value in file.content.values())
    ]


def compare(file: Recorded, histograms: Mapping[str, Tensor], report: Report, _: Precision) -> None:
    seed = int(os.environ.get("OMNITRUNK_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
    report.notes.append(f"{file.name:<28} drawn with OMNITRUNK_TEST_SEED={seed}")
    for setting, recorded in file.content.items():
        masks = draw(recorded, seed)
        recorded_histograms = {task: histograms.get(f"{setting}.hist.{task}") for task in recorded["tokens"]}
        compare_setting(f"{file.name} {setting}", recorded, masks, recorded_histograms, report)


def compare_setting(
    name: str,
    recorded: Mapping[str, Any],
    masks: Tensor,
    histograms: Mapping[str, Tensor | None],
    report: Report,
) -> None:
    """Rows for one setting: `masks` bool (draws, N) are ours, True where masked."""
    draws, sizes = recorded["draws"], list(recorded["tokens"].values())
    visible = dict(zip(recorded["tokens"], (~masks).split(sizes, dim=1), strict=True))
    counts = {task: part.sum(dim=1) for task, part in visible.items()}
    for task, statistics in recorded["per_task"].items():
        ours = (counts[task].double().mean().item(), counts[task].double().std().item())
        distance = mean_distance(ours, (statistics["mean"], statistics["std"]), draws)
        report.add(name, f"mean.{task} (standard errors)", distance, STANDARD_ERRORS)
        if (histogram := histograms[task]) is not None:
            ours = torch.bincount(counts[task], minlength=len(histogram))
            report.add(name, f"hist.{task} (-log10 p of chi-square)", surprise(ours, histogram), LEAST_LIKELY)
        rates = visible[task].double().mean(dim=0)
        spread = (rates.mean() * (1 - rates.mean()) / draws).sqrt().clamp_min(1e-12)
        farthest = ((rates - rates.mean()).abs() / spread).max().item()
        report.add(name, f"positions.{task} (standard errors)", farthest, STANDARD_ERRORS)
    present = sum((count > 0).long() for count in counts.values())
    shares = recorded["P(number of tasks with >0 tokens = k)"]
    expected = torch.tensor([round(draws * shares.get(str(k), 0.0)) for k in range(len(sizes) + 1)])
    ours = torch.bincount(present, minlength=len(expected))
    report.add(name, "tasks present (-log10 p of chi-square)", surprise(ours, expected), LEAST_LIKELY)


def draw(recorded: Mapping[str, Any], seed: int) -> Tensor:
    """As many masks bool (draws, N) as were recorded, by our keyed sampler."""
    config, sizes = sampling_config(recorded), tuple(recorded["tokens"].values())
    masks = []
    for start in range(0, recorded["draws"], CHUNK):
        positions = np.arange(start, min(start + CHUNK, recorded["draws"]))
        counts = torch.from_numpy(visible_counts(config, seed, positions))
        masks.append(sample_mask(counts, sizes, config.keep, seed=seed, positions=torch.from_numpy(positions))[1])
    return torch.cat(masks)


def _is_setting(value: Any) -> bool:
    return isinstance(value, dict) and {"tokens", "draws", "per_task"} <= value.keys()
