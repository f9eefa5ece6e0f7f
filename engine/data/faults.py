"""Bad samples: counted, named once, replaced by a rule, and too many of them is an error."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np

from omnitrunk.kernels.philox import uniform_bits

log = logging.getLogger(__name__)

MINIMUM_LOOKED_AT = 64
"""Samples to look at before the share of bad ones says anything."""
MOST_ATTEMPTS = 16
"""Unreadable substitutes in a row after which the disk is to blame, not the samples."""


@dataclass
class Faults:
    """The tally of one data set. Read `counts()` for the log."""

    bad_fraction: float
    """Greatest tolerated share of bad samples among those looked at."""
    missing: int = 0
    """Samples left out of the index because a modality has no file for them."""
    looked_at: int = 0
    bad: int = 0
    named: dict[str, str] = field(default_factory=dict)
    """Path -> reason of every bad file, in the order found."""

    def add(self, path: str, reason: str) -> None:
        """Counts one bad sample and names its file, if it is new. ValueError when there are too many."""
        self.bad += 1
        if path not in self.named:
            self.named[path] = reason
            log.warning("bad file %s: %s", path, reason)
        if self.looked_at >= MINIMUM_LOOKED_AT and self.bad > self.bad_fraction * self.looked_at:
            first = "; ".join(f"{path}: {reason}" for path, reason in list(self.named.items())[:3])
            raise ValueError(
                f"{self.bad} of {self.looked_at} samples are bad, more than data.bad_fraction = {self.bad_fraction:g} "
                f"allows: repair the files or raise it; first: {first}"
            )

    def counts(self) -> dict[str, int]:
        """Figures for the log."""
        return {"samples_read": self.looked_at, "samples_bad": self.bad, "samples_missing": self.missing}


def substitute(seed: int, position: int, attempt: int, size: int, fault: tuple[str, str] | None = None) -> int:
    """The sample that stands in at `position` when `attempt` - 1 substitutes were bad too; attempt counts from 1.

    It depends on nothing else, so that a resumed run and any number of ranks find the same one. `fault`, the (path,
    reason) of the last bad one, is for the ValueError after too many.
    """
    if attempt > MOST_ATTEMPTS:
        last = "; last: {}: {}".format(*fault) if fault else ""
        raise ValueError(f"{MOST_ATTEMPTS} samples in a row could not be read: is data.root still there?{last}")
    bits = uniform_bits(seed, "substitute", np.array([position], dtype=np.int64), attempt)[0, attempt - 1]
    return int(bits) * size >> 32
