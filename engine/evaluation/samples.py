"""Passes over a split: which data a modality is read from, and what is computed from every sample of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from omnitrunk.engine.data import Batch, DataConfig, evaluation_batches, open_index
from omnitrunk.engine.data.faults import Faults
from omnitrunk.engine.data.loader import read_strides
from omnitrunk.engine.data.source import SampleSource
from omnitrunk.engine.datasets import data_sets

if TYPE_CHECKING:
    from omnitrunk.engine.config import RunConfig

ROWS = 64
"""Pictures or clips encoded at a time; without masking a batch takes several times the memory of training."""
TOGETHER = {"rgbd": ("rgb", "depth")}
"""Names for several modalities at once."""

Features = Callable[[Batch], Tensor]
"""A batch to one vector for each sample, (B, D)."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What was computed from every sample of a split."""

    values: dict[str, Tensor]
    """Name -> (samples, ...)."""
    labels: Tensor
    """int64 (samples,)."""
    positions: np.ndarray
    """int64 (samples,): their places in the index of the split."""


def collect(
    data: DataConfig,
    split: str,
    modalities: Sequence[str],
    functions: Mapping[str, Callable[[Batch], Tensor]],
    device: torch.device,
) -> Pass:
    """Apply functions of a batch to all samples of a split that can be read; ValueError where none can."""
    found: dict[str, list[Tensor]] = {name: [] for name in functions}
    labels, positions = [], []
    for batch in batches_of(data, split, modalities, device):
        labels.append(batch.labels)
        positions.append(batch.positions)
        for name, function in functions.items():
            found[name].append(function(batch))
    if not labels:
        raise ValueError(f"no sample of {Path(data.root) / split} can be read; {_first_fault(data, split, modalities)}")
    return Pass(
        values={name: torch.cat(values) for name, values in found.items()},
        labels=torch.cat(labels),
        positions=np.concatenate(positions),
    )


def _first_fault(data: DataConfig, split: str, modalities: Sequence[str]) -> str:
    """What is wrong with the first sample, as far as its bytes say without decoding them."""
    index = open_index(data, split, list(read_strides(modalities, data.size)))
    faults = Faults(bad_fraction=1.0)
    with closing(
        SampleSource(index, index.modalities, faults, seed=None, threads=1, least_frames=data.least_frames)
    ) as source:
        source.fetch(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
    return next((f"first: {path}: {why}" for path, why in faults.named.items()), "none decodes, see the warnings above")


def batches_of(data: DataConfig, split: str, modalities: Sequence[str], device: torch.device) -> Iterator[Batch]:
    """The batches of one pass; a sample that is looked at several times counts so often in their size."""
    views = data.views * data.crops if "video" in modalities else 1
    with closing(evaluation_batches(data, split, tuple(modalities), max(1, ROWS // views), device=device)) as batches:
        yield from batches


def mean_over_views(values: Tensor, batch: Batch) -> Tensor:
    """(B * views, ...) -> (B, ...): the mean over the views of each sample."""
    return values.unflatten(0, (len(batch), -1)).mean(dim=1)


def find_data(config: RunConfig, name: str) -> tuple[DataConfig, tuple[str, ...]]:
    """The data that a modality of the model, or rgbd, is read from, and the modalities to read.

    A data set of just these modalities comes first, otherwise it is one that has others as well. ValueError where there
    is none.
    """
    wanted = TOGETHER.get(name, (name,))
    fitting = [entry for entry in data_sets(config).values() if set(wanted) <= set(entry.modalities)]
    if not fitting or set(wanted) - set(config.model.inputs):
        known = [*config.model.inputs, *(alias for alias, parts in TOGETHER.items() if _together(config, parts))]
        raise ValueError(f"evaluate names {name!r}, which this model takes from no data set; use {' or '.join(known)}")
    return min(fitting, key=lambda entry: len(entry.modalities)).data, wanted


def _together(config: RunConfig, parts: tuple[str, ...]) -> bool:
    return any(set(parts) <= set(entry.modalities) for entry in data_sets(config).values())
