"""What every decoder offers: batches of encoded samples in, tensors out, and the names of those it cannot decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
