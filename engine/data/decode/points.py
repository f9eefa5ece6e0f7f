"""Makes point clouds of one size: which points, normalization, and the random scale and shift of training.

The labels of points go with them: a point that is chosen brings its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from omnitrunk.engine.data.decode.decoder import UndecodableRows
from omnitrunk.engine.data.formats.point_files import read_labels
from omnitrunk.engine.data.sample import EncodedSample
from omnitrunk.engine.data.verify.images import BadFile
from omnitrunk.kernels.philox import uniform, uniform_bits


@dataclass(frozen=True, kw_only=True)
class PointRule:
    """How a stored cloud becomes the one the model sees, as a function of (seed, position)."""

    count: int
    """Points of every cloud."""
    normalize: bool
    """To the unit sphere: subtract the mean, divide by the largest distance from it."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Least and greatest factor."""
    stretch: bool = True
    """Whether a factor is drawn for each axis, or one for all."""
    shift: float = 0.0
    """Greatest shift along each axis, either way, after normalization."""

    def apply(self, cloud: np.ndarray, seed: int, position: int) -> tuple[np.ndarray, np.ndarray]:
        """float32 (count, 3) of a cloud float32 (n, 3): subset, normalization, scale and shift, in this order.

        That is the order of Point-MAE (Pang et al. 2022, and its released loader), whose sphere fits the points seen.
        With them comes which points of the cloud they are, int64 (count,).
        """
        chosen = choose(len(cloud), self.count, seed, position)
        points = cloud[chosen].astype(np.float64)
        if self.normalize:
            points -= points.mean(axis=0)
            points /= np.sqrt((points**2).sum(axis=1).max()) or 1.0
        draws = uniform(seed, "point augmentation", np.array([position], dtype=np.int64), 6)[0]
        factors = self.scale[0] + (self.scale[1] - self.scale[0]) * draws[: 3 if self.stretch else 1]
        return (points * factors + self.shift * (2 * draws[3:] - 1)).astype(np.float32), chosen


def choose(total: int, count: int, seed: int, position: int) -> np.ndarray:
    """`count` of range(total), int64 (count,): the beginning of a permutation keyed by (seed, position).

    Where there are fewer, every point is taken once, and further ones are drawn from all of them.
    """
    bits = uniform_bits(seed, "point subset", np.array([position], dtype=np.int64), max(total, count))[0]
    chosen = np.argsort(bits[:total], kind="stable")[:count]
    more = bits[len(chosen) : count].astype(np.uint64) * np.uint64(total) >> np.uint64(32)
    return np.concatenate([chosen, more.astype(np.int64)]) if len(chosen) < count else chosen


class PointDecoder:
    """Turns clouds, which the check has parsed, into points float32 (R, count, 3), with `threads` threads.

    Each cloud is shown in `copies` rows. Where there are `parts` to tell apart, also into parts int64 (R, count); a
    cloud without such labels cannot be used.
    """

    def __init__(self, rule: PointRule, *, parts: int = 0, seed: int, threads: int, copies: int = 1) -> None:
        self._rule = rule
        self._parts = parts
        self._copies = copies
        self._seed = seed
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="points")
        self._in_flight: list[Future[dict[str, np.ndarray]]] = []

    def submit(self, rows: Sequence[EncodedSample]) -> None:
        """Starts on one batch and returns."""
        assert not self._in_flight, "collect the batch in flight before the next is submitted"
        self._in_flight = [
            self._pool.submit(self._decode, row, row.position + copy) for row in rows for copy in range(self._copies)
        ]

    def collect(self) -> dict[str, torch.Tensor]:
        """Waits for the clouds of the batch in flight; UndecodableRows where some lack the labels asked for."""
        futures, self._in_flight = self._in_flight, []
        errors = [future.exception() for future in futures]
        bad = {n // self._copies: ("points", str(why)) for n, why in enumerate(errors) if isinstance(why, BadFile)}
        if bad:
            raise UndecodableRows(bad)
        clouds = [future.result() for future in futures]
        return {name: torch.from_numpy(np.stack([cloud[name] for cloud in clouds])) for name in clouds[0]}

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def _decode(self, row: EncodedSample, position: int) -> dict[str, np.ndarray]:
        cloud = row.facts[0]
        points, chosen = self._rule.apply(cloud.points, self._seed, position)
        return {"points": points} | ({"parts": read_labels(cloud.labels, self._parts)[chosen]} if self._parts else {})
