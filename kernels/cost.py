"""The least an operation must move and compute: the one truth about its floor, shared by tests, benchmarks and docs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Least work of one call, forward or backward.

    bytes: least bytes read and written from main memory; flop: multiplications and additions (2 per multiply-add);
    exps: exponentials and error functions, which a GPU serves from a unit of its own.
    """

    bytes: float = 0.0
    flop: float = 0.0
    exps: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(bytes=self.bytes + other.bytes, flop=self.flop + other.flop, exps=self.exps + other.exps)

    def seconds(self, *, bytes_per_s: float, flop_per_s: float, exps_per_s: float = float("inf")) -> float:
        """The floor in seconds on a machine with these three rates: the slowest of the three walls."""
        return max(self.bytes / bytes_per_s, self.flop / flop_per_s, self.exps / exps_per_s)
