"""What every index of samples offers, whatever the samples are stored in, and the choice of the index."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from omnitrunk.engine.data.config import DataConfig
from omnitrunk.engine.data.index.folder import FolderIndex, class_folders
from omnitrunk.engine.data.index.intrinsics import open_with_intrinsics
from omnitrunk.engine.data.index.listing import ListIndex
from omnitrunk.engine.data.index.shards import ShardIndex
from omnitrunk.engine.data.index.subset import Subset, choose_share


class SampleIndex(Protocol):
    """The samples of one split that have every requested modality, in an order that never changes."""

    modalities: tuple[str, ...]
    """What is read of every sample, in this order."""
    labels: np.ndarray
    """int64 (samples,)."""
    classes: list[str]
    """Name of each label."""
    numbered: bool
    """Whether labels are numbers that the data set itself gives, rather than places among sorted names."""
    missing: int
    """Samples left out because a modality has no file for them."""
    fingerprint: str
    """Changes when a used file is added, removed, renamed or resized."""

    def __len__(self) -> int: ...

    def path(self, sample: int, modality: str) -> str:
        """Where one modality of one sample is, for messages."""

    def read(self, sample: int, modality: str) -> bytes:
        """Its bytes; OSError where that fails."""


def open_index(config: DataConfig, split: str, modalities: Sequence[str]) -> SampleIndex:
    """The samples of `split` in the data set of the configuration. ValueError, in one line, where there are none.

    With the modalities come the intrinsics of the camera where the conversion of depth needs them.
    """
    kinds = {"folder": FolderIndex, "list": ListIndex, "shards": ShardIndex}
    assert config.source in kinds, "random data has no index"
    make = partial(kinds[config.source], config.root, split)
    reads = config.reads_intrinsics(modalities)
    index = open_with_intrinsics(make, modalities, Path(config.root) / split) if reads else make(modalities)
    if split == config.train_split and config.train_share < 1:
        return Subset(index, choose_share(index.labels, config.train_share))
    return index


def check_classes(config: DataConfig, index: SampleIndex, split: str, modalities: Sequence[str]) -> None:
    """Labels that are places among names agree only between splits with the same names: ValueError otherwise.

    Where there is no training split, as in a data set to evaluate on, there is nothing to agree with.
    """
    if index.numbered or split == config.train_split or not _has_split(config, config.train_split):
        return
    if config.source == "folder":  # the folders alone, without the files in them
        names = class_folders(config.root, config.train_split, modalities[0])
    else:
        names = open_index(config, config.train_split, modalities).classes
    if differing := set(index.classes) ^ set(names):
        raise ValueError(
            f"{split} and {config.train_split} of {config.root} differ in classes, so labels would not agree: "
            f"{', '.join(sorted(differing)[:5])}; give both splits the same classes"
        )


def _has_split(config: DataConfig, split: str) -> bool:
    return (Path(config.root) / split).exists() or any(Path(config.root).glob(f"{split}.*"))
