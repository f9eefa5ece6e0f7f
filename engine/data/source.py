"""From sample numbers to verified bytes: reads files, checks them, and replaces the samples that fail."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np

from omnitrunk.engine.data.faults import Faults, substitute
from omnitrunk.engine.data.folder import FolderIndex
from omnitrunk.engine.data.verify import BadFile, palette_to_grey, verify


@dataclass(slots=True)
class EncodedSample:
    """One sample as its files hold it. `files` follows the order of the requested modalities."""

    position: int
    sample: int
    attempt: int
    """0 for the sample the cursor chose, n for its n-th substitute."""
    files: Sequence[bytes] = ()
    height: int = 0
    width: int = 0
    fault: tuple[str, str] | None = None
    """(path, reason) when the sample cannot be used."""


class FolderSource:
    """Reads samples of a folder data set with `threads` readers.

    A bad sample is replaced by `faults.substitute` when `seed` is given, and left out when it is None (evaluation).
    """

    def __init__(
        self, index: FolderIndex, modalities: Sequence[str], faults: Faults, *, seed: int | None, threads: int
    ) -> None:
        self.index = index
        self.modalities = tuple(modalities)
        self.faults = faults
        self._seed = seed
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")

    def fetch(self, positions: np.ndarray, samples: np.ndarray) -> list[EncodedSample]:
        """The verified samples, int64 (B,) each, in order."""
        rows = [EncodedSample(p, s, 0) for p, s in zip(positions.tolist(), samples.tolist(), strict=True)]
        return self._settle(self._read(rows))

    def repair(self, rows: list[EncodedSample], bad: Mapping[int, tuple[str, str]]) -> list[EncodedSample]:
        """The same rows with others in place of those the decoder refused: `bad` is row -> (modality, reason)."""
        for row, (modality, reason) in bad.items():
            rows[row].fault = self.index.path(rows[row].sample, modality), reason
        return self._settle(rows)

    def labels(self, rows: Iterable[EncodedSample]) -> np.ndarray:
        """int64 (B,)."""
        return self.index.labels[[row.sample for row in rows]]

    def close(self) -> None:
        """Ends the reader threads."""
        self._pool.shutdown()

    def _settle(self, rows: list[EncodedSample]) -> list[EncodedSample]:
        for place, row in enumerate(rows):
            while row.fault:
                self.faults.add(*row.fault)
                if self._seed is None:
                    break
                stand_in = substitute(self._seed, row.position, row.attempt + 1, len(self.index))
                rows[place] = row = self._read([EncodedSample(row.position, stand_in, row.attempt + 1)])[0]
        return [row for row in rows if not row.fault]

    def _read(self, rows: list[EncodedSample]) -> list[EncodedSample]:
        self.faults.looked_at += len(rows)
        share = -(-len(rows) // self._threads)
        parts = [rows[start : start + share] for start in range(0, len(rows), share)]
        return list(chain.from_iterable(self._pool.map(self._read_some, parts)))

    def _read_some(self, rows: list[EncodedSample]) -> list[EncodedSample]:
        for row in rows:
            self._read_one(row)
        return rows

    def _read_one(self, row: EncodedSample) -> None:
        files, first = [], None
        for modality in self.modalities:
            path = self.index.path(row.sample, modality)
            try:
                data = read_file(path)
                size = verify(data, modality)
                if first and size != first:
                    raise BadFile(f"is {size[0]}x{size[1]} pixels, but {self.modalities[0]} is {first[0]}x{first[1]}")
            except (BadFile, OSError) as error:
                row.fault = path, getattr(error, "strerror", None) or str(error)
                return
            files.append(palette_to_grey(data) if modality == "semseg" else data)
            first = size
        row.files, (row.height, row.width) = files, first


def read_file(path: str) -> bytes:
    """The whole file. Plain system calls: file objects cost as much again as reading a small picture."""
    handle = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(handle).st_size
        data = os.read(handle, size)
        while 0 < len(data) < size and (more := os.read(handle, size - len(data))):
            data += more  # a network file system may hand out less than was asked for
        return data
    finally:
        os.close(handle)
