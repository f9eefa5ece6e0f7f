"""The order of the samples. Its whole state is one integer: the number of samples the run has seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from omnitrunk.kernels.philox import uniform_bits


@dataclass
class Cursor:
    """Walks through endless shuffled epochs of `size` samples, one global batch at a time.

    Position p of the run shows the n-th sample of all epochs, n = p // copies, which is
    `epoch_order(size, seed, n // size)[n % size]`. The order knows nothing of ranks: a global batch is the next `batch`
    positions, and rank r of `world` takes the r-th of `world` equal, contiguous slices. So a run may go on with another
    number of ranks. Batches run across the end of an epoch; nothing is dropped.
    """

    size: int
    """Samples in the data set."""
    seed: int
    batch: int
    """Samples per step over all ranks."""
    rank: int = 0
    world: int = 1
    samples_seen: int = 0
    """The state: positions consumed by all ranks together. Setting it moves the cursor."""
    copies: int = 1
    """Positions in a row that show the same sample."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.batch % self.world:
            raise ValueError(
                f"a global batch of {self.batch} does not divide over {self.world} ranks: set data.batch to a multiple"
            )
        if self.batch // self.world % self.copies:
            raise ValueError(
                f"a batch of {self.batch // self.world} samples per rank does not hold all copies of each: set "
                f"data.batch to a multiple of ranks x data.copies = {self.world * self.copies}"
            )
        assert self.size > 0 and 0 <= self.rank < self.world and self.samples_seen >= 0
        # Two epochs are what a batch can touch. Each cursor keeps its own: the data sets of a joint run take turns.
        self._order = lru_cache(maxsize=2)(partial(epoch_order, self.size, self.seed))

    def take(self) -> np.ndarray:
        """The positions, int64 (batch / world,), of this rank's slice of the next global batch; moves on."""
        share = self.batch // self.world
        first = self.samples_seen + self.rank * share
        self.samples_seen += self.batch
        return np.arange(first, first + share, dtype=np.int64)

    def __iter__(self) -> Iterator[np.ndarray]:
        """The positions of one batch after the other, without end."""
        while True:
            yield self.take()

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        """The sample, int64, at each of the given positions of the run."""
        epochs, places = np.divmod(positions // self.copies, self.size)
        samples = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            samples[here] = self._order(int(epoch))[places[here]]
        return samples


def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(size), int64, that depends on (size, seed, epoch) alone.

    Samples are sorted by 64 random bits each, so every order is equally likely (equal keys: 1 in 10^7 for a million
    samples, and then the lower sample comes first). A million samples take a fraction of a second, once per epoch.
    """
    bits = uniform_bits(seed, "sample order", np.array([epoch], dtype=np.int64), 2 * size)
    order = np.argsort(np.ascontiguousarray(bits[0]).view(np.uint64), kind="stable")
    order.setflags(write=False)
    return order
