"""Joins reading and decoding: while DALI decodes one batch, the bytes of the next are read and checked."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

import numpy as np
import torch

from omnitrunk.engine.data.batch import Batch
from omnitrunk.engine.data.crop import Crop
from omnitrunk.engine.data.dali import ImageDecoder, UndecodableRows
from omnitrunk.engine.data.source import EncodedSample, FolderSource

Rectangle = Callable[[np.ndarray, np.ndarray, np.ndarray], Crop]
"""(heights, widths, positions), each int64 (B,), to the crop of every sample."""


class FolderBatches:
    """Batches of a folder data set. A sample that fails to decode is repaired by the source, and its batch runs again.

    What a position shows depends on nothing but the bytes, the source's rule and the rectangle: no fault is remembered
    from one batch to the next, or a resumed run could differ from the run it resumes.
    """

    def __init__(self, source: FolderSource, decoder: ImageDecoder, rectangle: Rectangle) -> None:
        self._source = source
        self._decoder = decoder
        self._rectangle = rectangle

    def batches(self, requests: Iterable[tuple[np.ndarray, np.ndarray]]) -> Generator[Batch, None, None]:
        """One batch per request (positions, samples), int64 (B,) each; none where every sample of it was left out."""
        in_flight: list[EncodedSample] = []
        try:
            for positions, samples in requests:
                rows = self._source.fetch(positions, samples)
                batch = self._collect(in_flight)
                in_flight = rows
                self._submit(in_flight)
                if batch:
                    yield batch
            if batch := self._collect(in_flight):
                yield batch
        finally:
            self._source.close()

    def _submit(self, rows: list[EncodedSample]) -> None:
        if rows:
            heights, widths, positions = np.array([(r.height, r.width, r.position) for r in rows], dtype=np.int64).T
            self._decoder.submit([row.files for row in rows], self._rectangle(heights, widths, positions))

    def _collect(self, rows: list[EncodedSample]) -> Batch | None:
        if not rows:
            return None
        try:
            tensors = self._decoder.collect()
        except UndecodableRows as error:
            repaired = self._source.repair(rows, error.rows)
            self._submit(repaired)
            return self._collect(repaired)
        labels = torch.from_numpy(self._source.labels(rows))
        return Batch(
            tensors=tensors,
            labels=labels,
            positions=np.array([row.position for row in rows], dtype=np.int64),
            replaced=np.array([row.attempt > 0 for row in rows]),
        )
