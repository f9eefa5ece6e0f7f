"""Some samples of an index: learning from few examples of each class."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from omnitrunk.kernels.philox import uniform_bits

if TYPE_CHECKING:
    from omnitrunk.engine.data.index import SampleIndex

KEY = 0
"""Takes the place of the run's seed: runs with different seeds learn from the same samples, and can be compared."""


class Subset:
    """The samples `chosen`, int64 (n,), of an index."""

    def __init__(self, index: SampleIndex, chosen: np.ndarray) -> None:
        self._index = index
        self._chosen = chosen
        self.modalities, self.classes, self.numbered = index.modalities, index.classes, index.numbered
        self.labels = index.labels[chosen]
        self.missing = index.missing
        self.fingerprint = hashlib.sha256(index.fingerprint.encode() + chosen.astype("<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._chosen)

    def path(self, sample: int, modality: str) -> str:
        """Where one modality of one sample is, for messages."""
        return self._index.path(int(self._chosen[sample]), modality)

    def read(self, sample: int, modality: str) -> bytes:
        """Its bytes."""
        return self._index.read(int(self._chosen[sample]), modality)


def choose_share(labels: np.ndarray, share: float) -> np.ndarray:
    """Which samples, int64 (n,) in rising order, make up `share` of every class; at least one, rounded to the nearest.

    Samples stand in one random order, so that those of a share are among those of any greater one.
    """
    order = np.argsort(uniform_bits(KEY, "train share", np.arange(len(labels), dtype=np.int64), 1)[:, 0], kind="stable")
    ordered, chosen = labels[order], []
    for label in np.unique(labels):
        members = order[ordered == label]
        chosen.append(members[: max(round(share * len(members)), 1)])
    return np.sort(np.concatenate(chosen))
