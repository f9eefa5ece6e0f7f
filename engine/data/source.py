"""From sample numbers to verified bytes: reads files, checks them, and replaces the samples that fail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch

from omnitrunk.engine.data.faults import Faults, substitute
from omnitrunk.engine.data.index import SampleIndex
from omnitrunk.engine.data.sample import EncodedSample, Facts, Picture
from omnitrunk.engine.data.verify.images import BadFile
from omnitrunk.engine.data.verify.inspection import inspect_file


class SampleSource:
    """Reads samples of a data set with `threads` readers.

    A bad sample is replaced by `faults.substitute` when `seed` is given, and left out when it is None (evaluation).
    With `device`, where the samples will be decoded, files that cannot be decoded there are bad as well; so are videos
    of fewer than `least_frames` frames.
    """

    def __init__(
        self,
        index: SampleIndex,
        modalities: Sequence[str],
        faults: Faults,
        *,
        seed: int | None,
        threads: int,
        device: torch.device | str | None = None,
        least_frames: int = 1,
    ) -> None:
        self.index = index
        self.modalities = tuple(modalities)
        self.faults = faults
        self._seed = seed
        self._threads = threads
        self._device = device
        self._least_frames = least_frames
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
                stand_in = substitute(self._seed, row.position, row.attempt + 1, len(self.index), row.fault)
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
        files: list[bytes] = []
        facts: list[Facts] = []
        for modality in self.modalities:
            try:
                data = self.index.read(row.sample, modality)
                data, found = inspect_file(modality, data, self._device, least_frames=self._least_frames)
                if facts and isinstance(found, Picture) and found != facts[0]:
                    raise BadFile(f"is {_pixels(found)} pixels, but {self.modalities[0]} is {_pixels(facts[0])}")
            except (BadFile, OSError) as error:
                row.fault = self.index.path(row.sample, modality), getattr(error, "strerror", None) or str(error)
                return
            files.append(data)
            facts.append(found)
        row.files, row.facts = files, facts


def _pixels(picture: Picture) -> str:
    return f"{picture.height}x{picture.width}"
