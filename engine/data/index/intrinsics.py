"""Where the focal lengths of cameras come from: a file for each sample, or one for all of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omnitrunk.engine.data.files import read_file

if TYPE_CHECKING:
    from omnitrunk.engine.data.index import SampleIndex

INTRINSICS = "intrinsics"
SHARED = "intrinsics.txt"


def open_with_intrinsics(
    make: Callable[[Sequence[str]], SampleIndex], modalities: Sequence[str], folder: Path
) -> SampleIndex:
    """The index that `make` gives for the modalities, with intrinsics as its last one.

    They come from the file that all samples of the split share, in `folder`, or else from a file of each sample, as of
    any modality. ValueError where there is neither.
    """
    if (folder / SHARED).is_file():
        return SharedIntrinsics(make(modalities), folder / SHARED)
    try:
        return make([*modalities, INTRINSICS])
    except ValueError as error:
        make(modalities)  # says so itself where something else is missing
        raise ValueError(
            f'data.depth_as = "disparity" needs the focal length: set data.depth_focal to its pixels, or write it to '
            f"{folder / SHARED} ({error})"
        ) from error


class SharedIntrinsics:
    """An index whose samples were all taken with one camera."""

    def __init__(self, index: SampleIndex, file: Path) -> None:
        self._index = index
        self._file = str(file)
        self._content = read_file(self._file)
        self.modalities = (*index.modalities, INTRINSICS)
        self.labels, self.classes, self.numbered = index.labels, index.classes, index.numbered
        self.missing = index.missing
        self.fingerprint = hashlib.sha256(index.fingerprint.encode() + self._content).hexdigest()

    def __len__(self) -> int:
        return len(self._index)

    def path(self, sample: int, modality: str) -> str:
        """The file of one modality of one sample."""
        return self._file if modality == INTRINSICS else self._index.path(sample, modality)

    def read(self, sample: int, modality: str) -> bytes:
        """Its bytes."""
        return self._content if modality == INTRINSICS else self._index.read(sample, modality)
