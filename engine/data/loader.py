"""The loader: from a configuration and a place in the run to an iterator over batches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from omnitrunk.engine.data.batch import Batch
from omnitrunk.engine.data.config import DataConfig
from omnitrunk.engine.data.cursor import Cursor
from omnitrunk.engine.data.decode.decoders import ALONE, check_together, make_decoder
from omnitrunk.engine.data.faults import Faults
from omnitrunk.engine.data.index import SampleIndex, check_classes, open_index
from omnitrunk.engine.data.index.random_source import RandomSamples
from omnitrunk.engine.data.prefetch import Prefetcher
from omnitrunk.engine.data.source import SampleSource
from omnitrunk.engine.data.stream import SampleBatches
from omnitrunk.models.modality import find_modality

if TYPE_CHECKING:
    from omnitrunk.models.masking.mask_plan import MaskPlan

MakePlan = Callable[[np.ndarray], "MaskPlan"]
"""Positions, int64 (B,), to the plan of that batch: which tokens are visible."""


class Loader:
    """Endless training batches of one rank from `samples_seen` on. Close it, or use it in a `with` statement.

    Batches do not depend on when, where or by how many ranks they are made: a loader that starts at the `samples_seen`
    of another goes on exactly as the other would have. `modalities` are names of the registry, or one of video, audio
    and points. With `micro_batches` = n a step is n batches in a row. `make_plan` is called in the background, per
    micro-batch. Everything is on `device`.
    """

    def __init__(
        self,
        config: DataConfig,
        modalities: Sequence[str],
        *,
        seed: int,
        samples_seen: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        make_plan: MakePlan | None = None,
        micro_batches: int = 1,
    ) -> None:
        strides = read_strides(modalities, config.size)
        if config.source == "random":
            data = RandomSamples(config, strides, seed=seed, device=device)
        else:
            data = open_index(config, config.train_split, list(strides))
        self.dataset_size = len(data)
        """Samples in one epoch."""
        self.rows_per_epoch = len(data) * config.copies
        """How often one is shown in it, copies of one sample included."""
        self.labels = 0 if isinstance(data, RandomSamples) else int(data.labels.max()) + 1
        """Labels that occur, counted up to the greatest; 0 where there are none."""
        self.fingerprint = data.fingerprint
        """Identifies the files of the data set: a run resumed on others would be another run."""
        self.faults = Faults(config.bad_fraction, missing=data.missing)
        """Bad samples met so far, those of batches prepared ahead included."""
        self.replaced = 0
        """Stand-ins for bad samples in the batches delivered so far: the same number in a run that was resumed."""
        cursor = Cursor(len(data), seed, config.batch, rank, world, samples_seen, config.copies)
        batches = _training_batches(config, strides, data, self.faults, cursor, device)
        self.batch, self.micro_batches = config.batch, micro_batches
        self._start, self._delivered = samples_seen, 0
        depth = config.prefetch * micro_batches
        self._prefetcher = Prefetcher(_with_plans(batches, micro_batches, make_plan), depth, device)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        batch = next(self._prefetcher)
        self._delivered += 1
        if batch.replaced is not None:
            self.replaced += int(batch.replaced.sum())
        return batch

    @property
    def samples_seen(self) -> int:
        """Samples of all ranks in the steps delivered in full: the state to resume from."""
        return self._start + self._delivered // self.micro_batches * self.batch

    @property
    def wait_seconds(self) -> float:
        """Time the consumer has spent waiting for batches: what the data costs the run."""
        return self._prefetcher.wait_seconds

    @property
    def samples_per_step(self) -> dict[str, float]:
        """Data set -> its samples in a step; there is one, which has no name."""
        return {"": float(self.batch)}

    def close(self) -> None:
        """Ends the background threads."""
        self._prefetcher.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def evaluation_batches(
    config: DataConfig, split: str, modalities: Sequence[str], batch: int, *, device: torch.device | str = "cpu"
) -> Prefetcher:
    """Every sample of a split once, in the order of the index, in batches of `batch`; the last one may be smaller.

    Pictures are cut to their largest centred square, clips and recordings are taken from the middle. With data.views or
    data.crops above 1, tensors have views x crops rows for each video, clip by clip; labels and positions have one.
    Unreadable samples are left out and named in the log; positions are those of the index, from 0. ValueError where the
    split's classes are not those of the training split.
    """
    if config.source == "random":
        raise ValueError("evaluation reads files: set data.source to folder, list or shards, and data.root")
    strides = read_strides(modalities, config.size)
    index = open_index(config, split, list(strides))
    check_classes(config, index, split, list(strides))
    faults = Faults(config.bad_fraction, missing=index.missing)
    starts = range(0, len(index), batch)
    requests = (np.arange(start, min(start + batch, len(index)), dtype=np.int64) for start in starts)
    samples = _sample_batches(config, strides, index, faults, batch=batch, seed=None, device=device)
    return Prefetcher(samples.batches((places, places) for places in requests), config.prefetch, device)


def read_strides(modalities: Sequence[str], size: int) -> dict[str, int]:
    """The modalities that have data of their own, with their strides, in the order given; checks the picture size."""
    names = dict.fromkeys(name if name in ALONE else find_modality(name).data for name in modalities)
    found = [find_modality(name) for name in names if name not in ALONE]
    for modality in found:
        if size % modality.stride:
            raise ValueError(
                f"data.size {size} is not a multiple of the stride {modality.stride} of {modality.name}: "
                f"use {size - size % modality.stride or modality.stride}"
            )
    strides = dict.fromkeys(names, 1) | {modality.name: modality.stride for modality in found}
    check_together(strides)
    return strides


def _training_batches(
    config: DataConfig,
    strides: dict[str, int],
    data: SampleIndex | RandomSamples,
    faults: Faults,
    cursor: Cursor,
    device: torch.device | str,
) -> Generator[Batch, None, None]:
    if isinstance(data, RandomSamples):
        return (data.batch(positions) for positions in cursor)
    rows = cursor.batch // cursor.world
    samples = _sample_batches(config, strides, data, faults, batch=rows, seed=cursor.seed, device=device)
    return samples.batches((positions, cursor.samples_at(positions)) for positions in cursor)


def _sample_batches(
    config: DataConfig,
    strides: dict[str, int],
    index: SampleIndex,
    faults: Faults,
    *,
    batch: int,
    seed: int | None,
    device: torch.device | str,
) -> SampleBatches:
    """Reading and decoding in batches of up to `batch`, at random by `seed`, or as in evaluation where that is None."""
    options = {"threads": config.threads, "device": device, "least_frames": config.least_frames}
    source = SampleSource(index, index.modalities, faults, seed=seed, **options)
    copies = 1 if seed is None else config.copies
    decoder = make_decoder(config, strides, batch=batch // copies, seed=seed, device=device)
    return SampleBatches(source, decoder, copies=copies)


def _with_plans(
    batches: Generator[Batch, None, None], micro_batches: int, make_plan: MakePlan | None
) -> Generator[Batch, None, None]:
    with closing(batches):
        for batch in batches:
            for part in batch.split(micro_batches):
                yield replace(part, plan=make_plan(part.positions)) if make_plan else part
