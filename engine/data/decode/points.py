"""Makes point clouds of one size: which points, normalization, and the random scale and shift of training."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from omnitrunk.engine.data.sample import EncodedSample
from omnitrunk.kernels.philox import uniform, uniform_bits


@dataclass(frozen=True, kw_only=True)
class PointRule:
    """How a stored cloud becomes the one the model sees, as a function of (seed, position)."""

    count: int
    """Points of every cloud."""
    normalize: bool
    """To the unit sphere: subtract the mean, divide by the largest distance from it."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Least and greatest factor, drawn for each axis."""
    shift: float = 0.0
    """Greatest shift along each axis, either way, after normalization."""

    def apply(self, cloud: np.ndarray, seed: int, position: int) -> np.ndarray:
        """float32 (count, 3) of a cloud float32 (n, 3): subset, normalization, scale and shift, in this order.

        That is the order of Point-MAE (Pang et al. 2022, and its released loader), whose sphere fits the points seen.
        """
        points = cloud[choose(len(cloud), self.count, seed, position)].astype(np.float64)
        if self.normalize:
            points -= points.mean(axis=0)
            points /= np.sqrt((points**2).sum(axis=1).max()) or 1.0
        draws = uniform(seed, "point augmentation", np.array([position], dtype=np.int64), 6)[0]
        factors = self.scale[0] + (self.scale[1] - self.scale[0]) * draws[:3]
        return (points * factors + self.shift * (2 * draws[3:] - 1)).astype(np.float32)


def choose(total: int, count: int, seed: int, position: int) -> np.ndarray:
    """`count` of range(total), int64 (count,): the beginning of a permutation keyed by (seed, position).

    Where there are fewer, every point is taken once, and further ones are drawn from all of them.
    """
    bits = uniform_bits(seed, "point subset", np.array([position], dtype=np.int64), max(total, count))[0]
    chosen = np.argsort(bits[:total], kind="stable")[:count]
    more = bits[len(chosen) : count].astype(np.uint64) * np.uint64(total) >> np.uint64(32)
    return np.concatenate([chosen, more.astype(np.int64)]) if len(chosen) < count else chosen


class PointDecoder:
    """Turns clouds, which the check has parsed, into points float32 (B, count, 3), with `threads` threads."""

    def __init__(self, rule: PointRule, *, seed: int, threads: int) -> None:
        self._rule = rule
        self._seed = seed
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="points")
        self._in_flight: list[Future[np.ndarray]] = []

    def submit(self, rows: Sequence[EncodedSample]) -> None:
        """Starts on one batch and returns."""
        assert not self._in_flight, "collect the batch in flight before the next is submitted"
        self._in_flight = [self._pool.submit(self._rule.apply, r.facts[0], self._seed, r.position) for r in rows]

    def collect(self) -> dict[str, torch.Tensor]:
        """Waits for the clouds of the batch in flight."""
        clouds, self._in_flight = [future.result() for future in self._in_flight], []
        return {"points": torch.from_numpy(np.stack(clouds))}

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()
