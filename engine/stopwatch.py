"""Where the time of a run goes, by the host's clock."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator


class Stopwatch:
    """Seconds by activity, since the start of the process and since the last `lap`."""

    def __init__(self) -> None:
        self.total: dict[str, float] = defaultdict(float)
        self._lap: dict[str, float] = defaultdict(float)
        self._lap_start = self._start = time.perf_counter()

    @contextlib.contextmanager
    def spent_on(self, activity: str) -> Iterator[None]:
        """Count the time inside as `activity`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self.total[activity] += seconds
            self._lap[activity] += seconds

    def lap(self) -> dict[str, float]:
        """Seconds since the last call by activity, and in all under "wall"; starts the next lap."""
        now = time.perf_counter()
        seconds = {**self._lap, "wall": now - self._lap_start}
        self._lap.clear()
        self._lap_start = now
        return seconds

    def summary(self, **others: float) -> str:
        """One line: the shares of all activities, and of `others` in seconds, in the time since the start.

        What is left is the training itself.
        """
        wall = time.perf_counter() - self._start
        spent = {**others, **self.total}
        shares = {"compute": wall - sum(spent.values()), **spent}
        parts = [f"{activity} {100 * seconds / wall:.1f}%" for activity, seconds in shares.items()]
        return f"{duration(wall)}: " + ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as people read them: 12s, 3m20s, 5h07m, 2d03h."""
    seconds = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // part:02d}{smaller}"
    return f"{seconds}s"
