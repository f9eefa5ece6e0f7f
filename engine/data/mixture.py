"""Several data sets in one run: which of them each step takes its samples from.

Girdhar et al. 2022 (Omnivore), section 3.2 and table 8. An epoch of the run holds so many batches of every data set as
a number of passes over it has. Batches are separate, each step with one of them, or mixed, each with one of every data
set that is its turn. The order of the steps is drawn anew for each epoch, and every data set goes through shuffled
epochs of its own, so that one that is repeated within an epoch of the run comes in another order, with other crops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import count
from typing import Any, Literal

import numpy as np

from omnitrunk.engine.data.batch import Batch
from omnitrunk.engine.data.cursor import epoch_order
from omnitrunk.engine.data.loader import Loader
from omnitrunk.kernels.philox import uniform_bits

MOST_PASSES = 10_000
"""Over one data set in an epoch: the order of an epoch is held in memory."""


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Data sets that one model is trained on together; each has its own samples and, in the model, its own head."""

    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Each data set of the model -> the fields of [data] that are different for it. Empty where there is one alone."""
    repeat: dict[str, float] = field(default_factory=dict)
    """Data set -> passes over it in an epoch of the run, 1 where nothing is said; 0.1 takes every tenth batch."""
    accumulate: dict[str, int] = field(default_factory=dict)
    """Data set -> micro-batches of its batches, where that is not optimizer.accumulate."""
    batches: Literal["separate", "mixed"] = "separate"
    """Separate: a step takes a batch of one data set. Mixed: of several, as evenly as their numbers of batches allow;
    the loss is the mean over all samples of the step."""

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        for name, passes in self.repeat.items():
            if not 0 < passes <= MOST_PASSES:
                raise ValueError(
                    f"mixture.repeat.{name} = {passes} must be above 0 and at most {MOST_PASSES:,}; take the data set "
                    "out, or the others more seldom"
                )
        for name, parts in self.accumulate.items():
            if parts < 1:
                raise ValueError(f"mixture.accumulate.{name} = {parts} must be 1 or more")
        for section in ("repeat", "accumulate"):
            if unknown := set(getattr(self, section)) - set(self.sets):
                raise ValueError(f"mixture.{section} names {min(unknown)!r}, which is not in mixture.sets")


@dataclass(frozen=True)
class Order:
    """Which data sets take part in each step of a run."""

    batches: Mapping[str, int]
    """Batches of each data set in an epoch, 1 or more."""
    seed: int
    mixed: bool = False

    @cached_property
    def length(self) -> int:
        """Steps of an epoch: mixed ones are as many as the data set with most batches has."""
        return (max if self.mixed else sum)(self.batches.values())

    def at(self, step: int) -> tuple[str, ...]:
        """The data sets of a step, counted from 0."""
        epoch, place = divmod(step, self.length)
        return tuple(name for name, there in zip(self.batches, self._epoch(epoch)[place], strict=True) if there)

    def _epoch(self, epoch: int) -> np.ndarray:
        """Which data sets take part: bool (steps, data sets)."""
        return _epoch(tuple(self.batches.values()), self.seed, self.mixed, epoch)


@lru_cache(maxsize=2)
def _epoch(batches: tuple[int, ...], seed: int, mixed: bool, epoch: int) -> np.ndarray:
    if not mixed:
        which = np.repeat(np.arange(len(batches)), batches)
        return np.eye(len(batches), dtype=bool)[which[epoch_order(len(which), seed_of(seed, "order"), epoch)]]
    longest = max(batches)
    places = [epoch_order(longest, seed_of(seed, f"order {column}"), epoch) for column in range(len(batches))]
    return np.stack([place < number for place, number in zip(places, batches, strict=True)], axis=1)


def seed_of(seed: int, name: str) -> int:
    """The seed of one data set of a run, so that no two of them draw the same crops and masks."""
    low, high = uniform_bits(seed, f"data set {name}", np.zeros(1, dtype=np.int64), 2)[0].tolist()
    return low | (high >> 1) << 32


class JointLoader:
    """Endless training batches of several data sets; the same face as that of a Loader.

    The loaders, one for each data set, go on from where they are, the order from `step`.
    """

    def __init__(self, loaders: Mapping[str, Loader], order: Order, *, step: int = 0) -> None:
        self.loaders, self._order = dict(loaders), order
        self._batches = self._in_order(step)

    @property
    def fingerprint(self) -> dict[str, str]:
        """Identifies the files of each data set."""
        return {name: loader.fingerprint for name, loader in self.loaders.items()}

    @property
    def replaced(self) -> int:
        """Stand-ins for bad samples in the batches delivered so far."""
        return sum(loader.replaced for loader in self.loaders.values())

    @property
    def samples_seen(self) -> dict[str, int]:
        """Samples of each data set in the steps delivered in full: with the step, the state to resume from."""
        return {name: loader.samples_seen for name, loader in self.loaders.items()}

    @property
    def wait_seconds(self) -> float:
        """Time the consumer has spent waiting for batches."""
        return sum(loader.wait_seconds for loader in self.loaders.values())

    @property
    def samples_per_step(self) -> dict[str, float]:
        """Data set -> its samples in a step, the mean over an epoch of the run."""
        return {
            name: loader.batch * self._order.batches[name] / self._order.length for name, loader in self.loaders.items()
        }

    def __iter__(self) -> JointLoader:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Ends the background threads."""
        for loader in self.loaders.values():
            loader.close()

    def __enter__(self) -> JointLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _in_order(self, start: int) -> Iterator[Batch]:
        for step in count(start):
            names = self._order.at(step)
            samples = sum(self.loaders[name].batch for name in names)
            for name in names:
                loader = self.loaders[name]
                for part in range(loader.micro_batches):
                    last = name == names[-1] and part == loader.micro_batches - 1
                    yield replace(next(loader), weight=loader.batch / samples, last=last)
