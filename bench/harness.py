"""Timing that can be trusted on a machine that is not quiet: contenders take turns inside one run.

Speeds drift (clocks, neighbours, caches), so two times taken minutes apart say little about each other. Here every
round runs each contender once, A B A B ..., and a ratio is formed inside each round before any average is taken.
Contenders that are slow sit out some of the rounds where a budget is set; their ratios are of the rounds they were in.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from omnitrunk.engine import durable

Contender = Callable[[], Mapping[str, float]]
"""One unit of work; returns seconds by part. A closure becomes one with `timed`, a process with `Worker`."""

Turns = Mapping[int, Mapping[str, float]]
"""Number of a round -> seconds by part, for the rounds that a contender was in."""

Samples = dict[str, dict[int, Mapping[str, float]]]
"""Contender -> its turns."""

FEWEST_TURNS = 3
"""Turns that a contender gets however slow it is, where there are as many rounds."""


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


def interleave(contenders: Mapping[str, Contender], rounds: int, warmup: int = 1, budget: float = math.inf) -> Samples:
    """Runs every contender once a round, in the given order; `warmup` rounds before the first are thrown away.

    A contender whose turns would take more than `budget` seconds together is only in every second, fourth, eighth ...
    round. With powers of two, all rounds of a slow contender are rounds of the quicker ones too, and have a ratio.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} measures nothing; ask for at least 1")
    samples: Samples = {name: {} for name in contenders}
    strides = dict.fromkeys(contenders, 1)
    for number in range(-warmup, rounds):
        for name, contender in contenders.items():
            if number > 0 and number % strides[name]:
                continue
            start = time.perf_counter()
            parts = contender()
            if number == 0:
                strides[name] = stride(time.perf_counter() - start, rounds, budget)
            if number >= 0:
                samples[name][number] = parts
    return samples


def stride(seconds: float, rounds: int, budget: float) -> int:
    """From one round of a contender to its next, where a turn takes `seconds`: the least power of 2 that is enough."""
    chosen = 1
    while seconds * -(-rounds // chosen) > budget and -(-rounds // (2 * chosen)) >= FEWEST_TURNS:
        chosen *= 2
    return chosen


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and the 10th and 90th percentile, linearly interpolated."""
    p10, median, p90 = np.percentile(values, [10, 50, 90]).tolist()
    return {"median": median, "p10": p10, "p90": p90}


def paired_ratios(baseline: Turns, other: Turns, part: str) -> list[float]:
    """Baseline time of a part over the other's, for every round that both were in: above 1 the other is faster."""
    return [baseline[number][part] / parts[part] for number, parts in other.items() if number in baseline]


def rows(benchmark: str, samples: Samples, context: Mapping[str, object]) -> list[dict[str, object]]:
    """One row for each contender and part, times in seconds; the first contender is the baseline of all ratios.

    `context` (see `machine.context`) is repeated in every row, so that a row means something on its own.
    """
    baseline = next(iter(samples))
    result = []
    for name, turns in samples.items():
        for part in turns[0]:
            values = [parts[part] for parts in turns.values()]
            row = {"benchmark": benchmark, "contender": name, "part": part, "unit": "s", "turns": len(values)}
            row |= spread(values)
            if part in samples[baseline][0]:
                ratio = spread(paired_ratios(samples[baseline], turns, part))
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
    _write(path, [*_lines(path), *map(json.dumps, table)])


def replace_json(path: Path, table: Sequence[Mapping[str, object]], fields: Sequence[str]) -> None:
    """As `append_json`, but old rows that agree with a new one in all of `fields` make room for it."""
    known = {tuple(row[field] for field in fields) for row in table}
    kept = [line for line in _lines(path) if tuple(map(json.loads(line).get, fields)) not in known]
    _write(path, [*kept, *map(json.dumps, table)])


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(path, "".join(line + "\n" for line in lines))
