"""What every decoder offers: batches of encoded samples in, tensors out, and the names of those it cannot decode.

A sample may be shown in several rows of the tensors, those of one sample in a row; it is decoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from omnitrunk.engine.data.sample import EncodedSample


class UndecodableRows(Exception):
    """Samples that passed verification and still do not decode. `rows` is row -> (modality, reason)."""

    def __init__(self, rows: dict[int, tuple[str, str]]) -> None:
        super().__init__(f"{len(rows)} samples do not decode")
        self.rows = rows


class Decoder(Protocol):
    """Decodes one batch while the caller reads the next. The result depends on bytes and positions of rows alone."""

    def submit(self, rows: Sequence[EncodedSample]) -> None:
        """Starts decoding one batch and returns."""

    def collect(self) -> dict[str, torch.Tensor]:
        """Waits for the tensors of the batch in flight. After UndecodableRows the caller submits a repaired batch."""

    def close(self) -> None:
        """Gives back threads and memory; nothing is submitted afterwards."""


def row_positions(rows: Sequence[EncodedSample], copies: int) -> np.ndarray:
    """The position of every row, int64 (B * copies,), the key of what is random about it.

    Samples hold the position of their first row; the others follow.
    """
    first = np.array([row.position for row in rows], dtype=np.int64)
    return (first[:, None] + np.arange(copies)).reshape(-1)


def by_sample(values: np.ndarray, copies: int) -> np.ndarray:
    """Arrays of all rows (B * copies, ...) as (B, copies, ...), dense, as DALI takes them."""
    return np.ascontiguousarray(values).reshape(-1, copies, *values.shape[1:])


def by_row(copies: Sequence[torch.Tensor]) -> torch.Tensor:
    """The first row of all samples (B, ...), their second, and so on, as rows (B * copies, ...)."""
    return copies[0] if len(copies) == 1 else torch.stack(list(copies), dim=1).flatten(0, 1)
