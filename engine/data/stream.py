"""Joins reading and decoding: while one batch is decoded, the bytes of the next are read and checked."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import numpy as np
import torch

from omnitrunk.engine.data.batch import Batch
from omnitrunk.engine.data.decode.decoder import Decoder, UndecodableRows, row_positions
from omnitrunk.engine.data.sample import EncodedSample
from omnitrunk.engine.data.source import SampleSource


class SampleBatches:
    """Batches of a data set. A sample that fails to decode is repaired by the source, and its batch runs again.

    What a position shows depends on nothing but the bytes, the source's rule and the decoder's: no fault is remembered
    from one batch to the next, or a resumed run could differ from the run it resumes. With `copies`, that many
    positions in a row show one sample, which is read and decoded once.
    """

    def __init__(self, source: SampleSource, decoder: Decoder, *, copies: int = 1) -> None:
        self._source = source
        self._decoder = decoder
        self._copies = copies

    def batches(self, requests: Iterable[tuple[np.ndarray, np.ndarray]]) -> Generator[Batch, None, None]:
        """One batch per request (positions, samples), int64 (B,) each; none where every sample of it was left out."""
        in_flight: list[EncodedSample] = []
        try:
            for positions, samples in requests:
                rows = self._source.fetch(positions[:: self._copies], samples[:: self._copies])
                batch = self._collect(in_flight)
                in_flight = rows
                self._submit(in_flight)
                if batch:
                    yield batch
            if batch := self._collect(in_flight):
                yield batch
        finally:
            self._source.close()
            self._decoder.close()

    def _submit(self, rows: list[EncodedSample]) -> None:
        if rows:
            self._decoder.submit(rows)

    def _collect(self, rows: list[EncodedSample]) -> Batch | None:
        if not rows:
            return None
        try:
            tensors = self._decoder.collect()
        except UndecodableRows as error:
            repaired = self._source.repair(rows, error.rows)
            self._submit(repaired)
            return self._collect(repaired)
        labels = self._source.labels(rows).repeat(self._copies)
        return Batch(
            tensors=tensors,
            labels=torch.from_numpy(labels),
            positions=row_positions(rows, self._copies),
            replaced=np.array([row.attempt > 0 for row in rows]).repeat(self._copies),
        )
