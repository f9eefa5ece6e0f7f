"""The loader: from a configuration and a place in the run to an iterator over batches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from omnitrunk.engine.data.batch import Batch
from omnitrunk.engine.data.crop import center_crop, random_crop
from omnitrunk.engine.data.cursor import Cursor
from omnitrunk.engine.data.dali import ImageDecoder
from omnitrunk.engine.data.faults import Faults
from omnitrunk.engine.data.folder import FolderIndex, class_folders
from omnitrunk.engine.data.prefetch import Prefetcher
from omnitrunk.engine.data.random_source import RandomImages
from omnitrunk.engine.data.source import FolderSource
from omnitrunk.engine.data.stream import FolderBatches
from omnitrunk.models.modality import find_modality

if TYPE_CHECKING:
    from omnitrunk.models.masking import MaskPlan

MakePlan = Callable[[np.ndarray], "MaskPlan"]
"""Positions, int64 (B,), to the plan of that batch: which tokens are visible."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from and how they are cut."""

    source: Literal["folder", "random"] = "folder"
    """folder reads files below `root`; random makes noise on the device: the speed of a run whose data is free."""
    root: str = ""
    """Folder of the data set, laid out as ROOT/<split>/<modality>/<class>/<stem>.<suffix>."""
    train_split: str = "train"
    """Folder below `root` with the samples to train on."""
    val_split: str = "val"
    """Folder below `root` with the samples to evaluate on."""
    batch: int = 256
    """Samples per step, over all ranks and micro-batches."""
    size: int = 224
    """Height and width of the pictures the model sees, in pixels."""
    crop_area: tuple[float, float] = (0.2, 1.0)
    """Least and greatest share of a picture that a random crop covers."""
    flip: bool = True
    """Mirror every other training sample, at random."""
    bad_fraction: float = 0.01
    """Share of unreadable samples above which the run stops; up to it they are replaced, counted and logged."""
    threads: int = 4
    """Threads of each rank that read files, and as many that decode: the cores a rank may use."""
    prefetch: int = 2
    """Batches prepared ahead of the step that needs them."""

    def __post_init__(self) -> None:
        """Refuses values that no run could use."""
        if self.source not in ("folder", "random"):
            raise ValueError(f"data.source is {self.source!r}: use folder or random")
        for name in ("batch", "size", "threads", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}: use 1 or more")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"data.crop_area is {self.crop_area}: use 0 < least <= greatest <= 1")
        if not 0 <= self.bad_fraction < 1:
            raise ValueError(f"data.bad_fraction is {self.bad_fraction}: use a share from 0 to below 1")


class Loader:
    """Endless training batches of one rank from `samples_seen` on. Close it, or use it in a `with` statement.

    Batches do not depend on when, where or by how many ranks they are made: a loader that starts at the `samples_seen`
    of another goes on exactly as the other would have. `modalities` are names of the registry. With `micro_batches` = n
    a step is n batches in a row. `make_plan` is called in the background, per micro-batch. Everything is on `device`.
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
            data = RandomImages(strides, size=config.size, seed=seed, device=device)
        else:
            data = FolderIndex(config.root, config.train_split, list(strides))
        self.dataset_size = len(data)
        """Samples in one epoch."""
        self.fingerprint = data.fingerprint
        """Identifies the files of the data set: a run resumed on others would be another run."""
        self.faults = Faults(config.bad_fraction, missing=data.missing)
        """Bad samples met so far, those of batches prepared ahead included."""
        self.replaced = 0
        """Stand-ins for bad samples in the batches delivered so far: the same number in a run that was resumed."""
        cursor = Cursor(len(data), seed, config.batch, rank, world, samples_seen)
        batches = _training_batches(config, strides, data, self.faults, cursor, device)
        self._start, self._batch, self._micro_batches, self._delivered = samples_seen, config.batch, micro_batches, 0
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
        return self._start + self._delivered // self._micro_batches * self._batch

    @property
    def wait_seconds(self) -> float:
        """Time the consumer has spent waiting for batches: what the data costs the run."""
        return self._prefetcher.wait_seconds

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

    Pictures are cut to their largest centred square. Unreadable samples are left out and named in the log; positions
    are those of the index, from 0. ValueError where the split's classes are not those of the training split.
    """
    if config.source != "folder":
        raise ValueError("evaluation reads files: set data.source to folder and data.root to a data set")
    strides = read_strides(modalities, config.size)
    index = FolderIndex(config.root, split, list(strides))
    _check_classes(config, index, next(iter(strides)))
    faults = Faults(config.bad_fraction, missing=index.missing)
    source = FolderSource(index, list(strides), faults, seed=None, threads=config.threads)
    decoder = ImageDecoder(strides, size=config.size, batch=batch, threads=config.threads, device=device)
    starts = range(0, len(index), batch)
    requests = (np.arange(start, min(start + batch, len(index)), dtype=np.int64) for start in starts)
    batches = FolderBatches(source, decoder, center_crop).batches((positions, positions) for positions in requests)
    return Prefetcher(batches, config.prefetch, device)


def read_strides(modalities: Sequence[str], size: int) -> dict[str, int]:
    """The modalities that have data of their own, with their strides, in the order given; checks the picture size."""
    found = [find_modality(find_modality(name).data) for name in modalities]
    for modality in found:
        if size % modality.stride:
            raise ValueError(
                f"data.size {size} is not a multiple of the stride {modality.stride} of {modality.name}: "
                f"use {size - size % modality.stride or modality.stride}"
            )
    return {modality.name: modality.stride for modality in found}


def _training_batches(
    config: DataConfig,
    strides: dict[str, int],
    data: FolderIndex | RandomImages,
    faults: Faults,
    cursor: Cursor,
    device: torch.device | str,
) -> Generator[Batch, None, None]:
    if isinstance(data, RandomImages):
        return (data.batch(positions) for positions in cursor)
    source = FolderSource(data, list(strides), faults, seed=cursor.seed, threads=config.threads)
    rows = cursor.batch // cursor.world
    decoder = ImageDecoder(strides, size=config.size, batch=rows, threads=config.threads, device=device)
    rectangle = partial(random_crop, seed=cursor.seed, area=config.crop_area, flip=config.flip)
    requests = ((positions, cursor.samples_at(positions)) for positions in cursor)
    return FolderBatches(source, decoder, rectangle).batches(requests)


def _with_plans(
    batches: Generator[Batch, None, None], micro_batches: int, make_plan: MakePlan | None
) -> Generator[Batch, None, None]:
    with closing(batches):
        for batch in batches:
            for part in batch.split(micro_batches):
                yield replace(part, plan=make_plan(part.positions)) if make_plan else part


def _check_classes(config: DataConfig, index: FolderIndex, modality: str) -> None:
    """Labels are places among the class folders, so two splits must have the same ones."""
    if not (Path(config.root) / config.train_split).is_dir():
        return
    differing = set(index.classes) ^ set(class_folders(config.root, config.train_split, modality))
    if differing:
        raise ValueError(
            f"{index.folder} and {config.train_split} differ in classes, so labels would not agree: "
            f"{', '.join(sorted(differing)[:5])}; give both splits the same folders"
        )
