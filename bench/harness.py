"""Timing that can be trusted on a machine that is not quiet: contenders take turns inside one run.

Speeds drift (clocks, neighbours, caches), so two times taken minutes apart say little about each other. Here every
round runs each contender once, A B A B ..., and a ratio is formed inside each round before any average is taken.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from omnitrunk.engine import durable

Contender = Callable[[], Mapping[str, float]]
"""One unit of work; returns seconds by part. A closure becomes one with `timed`, a process with `Worker`."""

Samples = dict[str, list[Mapping[str, float]]]
"""Contender -> one entry for each round."""


def timed(work: Callable[[], object], settle: int = 2) -> Contender:
    """The wall time of `work()` as a contender with the single part "wall".

    On each turn it runs `settle` times before the time is taken: cores that waited for their turn are halted or slow,
    their caches belong to others, and it takes milliseconds until they work as in the middle of a training run.
    """

    def run() -> dict[str, float]:
        for _ in range(settle):
            work()
        start = time.perf_counter()
        work()
        return {"wall": time.perf_counter() - start}

    return run


def interleave(contenders: Mapping[str, Contender], rounds: int, warmup: int = 1) -> Samples:
    """Runs every contender once a round, in the given order; the first `warmup` rounds are thrown away."""
    if rounds < 1:
        raise ValueError(f"rounds={rounds} measures nothing; ask for at least 1")
    samples: Samples = {name: [] for name in contenders}
    for index in range(warmup + rounds):
        for name, contender in contenders.items():
            parts = contender()
            if index >= warmup:
                samples[name].append(parts)
    return samples


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and the 10th and 90th percentile, linearly interpolated."""
    p10, median, p90 = np.percentile(values, [10, 50, 90]).tolist()
    return {"median": median, "p10": p10, "p90": p90}


def paired_ratios(baseline: Sequence[float], other: Sequence[float]) -> list[float]:
    """Baseline time over the other's time, round by round: above 1 the other is faster."""
    return [first / second for first, second in zip(baseline, other, strict=True)]


def rows(benchmark: str, samples: Samples, context: Mapping[str, object]) -> list[dict[str, object]]:
    """One row for each contender and part, times in seconds; the first contender is the baseline of all ratios.

    `context` (see `machine.context`) is repeated in every row, so that a row means something on its own.
    """
    baseline = next(iter(samples))
    result = []
    for name, rounds in samples.items():
        for part in rounds[0]:
            values = [entry[part] for entry in rounds]
            row = {"benchmark": benchmark, "contender": name, "part": part, "unit": "s", "rounds": len(values)}
            row |= spread(values)
            if part in samples[baseline][0]:
                ratio = spread(paired_ratios([entry[part] for entry in samples[baseline]], values))
                row |= {"baseline": baseline} | {f"speedup_{key}": value for key, value in ratio.items()}
            result.append(row | dict(context))
    return result


def markdown(table: Sequence[Mapping[str, object]]) -> str:
    """Rows of `rows` as a Markdown table: median [p10-p90] in milliseconds, and the speed-up over the baseline."""
    lines = ["| benchmark | contender | part | ms, median [p10-p90] | speed-up, median [p10-p90] |", "|---" * 5 + "|"]
    for row in table:
        times = "{:.2f} [{:.2f}-{:.2f}]".format(*(1e3 * row[key] for key in ("median", "p10", "p90")))
        keys = ("speedup_median", "speedup_p10", "speedup_p90")
        speedup = "{:.2f} [{:.2f}-{:.2f}]".format(*(row[key] for key in keys)) if keys[0] in row else ""
        lines.append(f"| {row['benchmark']} | {row['contender']} | {row['part']} | {times} | {speedup} |")
    return "\n".join(lines)


def append_json(path: Path, table: Sequence[Mapping[str, object]]) -> None:
    """Adds rows to a file of JSON lines; the old lines are kept, and a crash leaves either the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_text() if path.exists() else ""
    durable.write_text(path, old + "".join(json.dumps(row) + "\n" for row in table))
