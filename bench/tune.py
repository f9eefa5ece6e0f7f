"""omnitrunk bench tune: finds launch settings for the GPU at hand and writes them into configs.json.

The cases of `bench kernels` say what is called, at which sizes, and what comes out. Each row of settings that a case
uses is the start of a climb: one parameter at a time is doubled, halved or switched, stages go up or down by one. A
neighbor that is clearly faster in forward and backward pass together, measured in turns with the row it would replace,
takes its place, until none is. A neighbor that does not compile or gives other results is passed over. What was found
becomes the column of this architecture; what other GPUs use stays. Training never tunes anything.

A setting that breaks the device ends the command; the tables of operations before it are written by then.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnitrunk.bench import harness, stopwatch
from omnitrunk.bench.case import OURS, Case, random
from omnitrunk.bench.cases import CASES
from omnitrunk.engine import durable
from omnitrunk.kernels import gpu

LEAST_GAIN = 1.02
"""How many times faster a row must be to replace another: less is noise."""
ROUNDS = 7
MOST = {"num_warps": 16, "num_stages": 6}
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-3}
"""Distance of results from those of the present settings, relative to their norm; sums may run in another order."""

Row = Mapping[str, Any]
Buckets = dict[str, Row]
Place = tuple[str, str, str]
"""Operation, kernel, bucket: one row of one configs.json."""


def neighbors(row: Row) -> Iterator[Row]:
    """Rows that differ in one parameter: switched, one stage more or less, doubled or halved."""
    for name, value in row.items():
        if isinstance(value, bool):
            others = [not value]
        elif name == "num_stages":
            others = [value + 1, value - 1]
        else:
            others = [2 * value or 1, value // 2]
        for other in others:
            if isinstance(other, bool) or 1 <= other <= MOST.get(name, other):
                yield {**row, name: other}


def climb(start: Row, gain: Callable[[Row, Row], float]) -> Row:
    """The row from which no neighbor is faster; gain(old, new) is how many times faster the new one is."""
    best, tried = start, [start]
    while True:
        for row in neighbors(best):
            if row in tried:
                continue
            tried.append(row)
            if gain(best, row) > LEAST_GAIN:
                best = row
                break
        else:
            return best


@contextmanager
def noting(places: set[Place]) -> Iterator[None]:
    """Inside, every row of settings that is asked for is noted."""
    original = gpu.settings

    def settings(operation: str, kernel: str, size: int) -> Row:
        rows = gpu.table_rows(operation, kernel)
        places.add((operation, kernel, next(bucket for bucket in rows if size <= float(bucket))))
        return original(operation, kernel, size)

    gpu.settings = settings
    try:
        yield
    finally:
        gpu.settings = original


def places_of(case: Case) -> set[Place]:
    """The rows of settings that a case uses, forward and backward."""
    places: set[Place] = set()
    with noting(places):
        results(case)
    return places


def results(case: Case) -> list[Tensor]:
    """What our way gives on the case's first inputs: outputs and gradients."""
    arguments = case.inputs(0)
    with torch.set_grad_enabled(case.backward is not None):
        output = case.contenders[OURS](*arguments)
    outputs = [output] if isinstance(output, Tensor) else list(output or [])
    if case.backward is None:
        return outputs
    found = stopwatch.tensors(outputs)
    directions = [random(i, *x.shape, dtype=x.dtype, device=str(x.device), grad=False) for i, x in enumerate(found)]
    gradients = stopwatch.backward(outputs, arguments, directions)
    return [x.detach() for x in (*outputs, *gradients) if x is not None]


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether results are those of the present settings, but for rounding."""
    for x, y in zip(found, expected, strict=True):
        if not y.is_floating_point():
            if not torch.equal(x, y):
                return False
            continue
        distance = (x.double() - y.double()).norm() / y.double().norm().clamp(min=1e-30)
        if not distance <= TOLERANCE.get(y.dtype, 1e-6):
            return False
    return True


class Tuner:
    """Rows of settings under trial, over all cases that use them."""

    def __init__(self, cases: Sequence[Case], device: str) -> None:
        self.device = device
        self.uses = {number: places_of(case) for number, case in enumerate(cases)}
        self.cases, self.expected = cases, [results(case) for case in cases]
        self.tables: dict[tuple[str, str], Buckets] = {
            (operation, kernel): dict(gpu.table_rows(operation, kernel))
            for operation, kernel, _ in sorted(set().union(*self.uses.values()))
        }
        self.log: list[str] = []

    def tune(self, place: Place) -> float:
        """Climb from a row to the best; returns how many times faster its cases became."""
        operation, kernel, bucket = place
        rows = self.tables[operation, kernel]
        start = rows[bucket]
        rows[bucket] = climb(start, lambda old, new: self.gain(place, old, new))
        return 1.0 if rows[bucket] == start else self.gain(place, start, rows[bucket])

    def gain(self, place: Place, old: Row, new: Row) -> float:
        """How many times faster the cases are with the new row; 0 where it does not work."""
        numbers = [number for number, uses in self.uses.items() if place in uses]
        try:
            with self._with(place, new):
                right = all(same(results(self.cases[number]), self.expected[number]) for number in numbers)
            return self._ratio(place, old, new, numbers) if right else self._passed_over(place, new, "other results")
        except torch.AcceleratorError:
            raise
        except Exception as error:  # what compilers and launchers raise has nothing else in common
            return self._passed_over(place, new, f"{type(error).__name__}: {error}")

    def _passed_over(self, place: Place, row: Row, why: str) -> float:
        self.log.append(f"{' | '.join(place)}: {json.dumps(row)} passed over: {' '.join(why.split())[:200]}")
        return 0.0

    def _ratio(self, place: Place, old: Row, new: Row, numbers: Sequence[int]) -> float:
        turns = {name: [self._turn(place, row, i) for i in numbers] for name, row in (("old", old), ("new", new))}
        contenders = {name: partial(_together, parts) for name, parts in turns.items()}
        samples = harness.interleave(contenders, ROUNDS)
        return harness.spread(harness.paired_ratios(samples["old"], samples["new"], "seconds"))["median"]

    def _turn(self, place: Place, row: Row, number: int) -> harness.Contender:
        case = self.cases[number]
        with self._with(place, row):
            timed = stopwatch.contender(case, case.contenders[OURS], [case.inputs(0), case.inputs(1)], self.device)

        def turn() -> Mapping[str, float]:
            with self._with(place, row):
                return timed()

        return turn

    @contextmanager
    def _with(self, place: Place, row: Row) -> Iterator[None]:
        """What was found so far, and one row of it replaced."""
        with ExitStack() as stack:
            for (operation, kernel), rows in self.tables.items():
                changed = {**rows, place[2]: row} if place[:2] == (operation, kernel) else rows
                stack.enter_context(gpu.trying(operation, kernel, changed))
            yield


def _together(parts: Sequence[harness.Contender]) -> dict[str, float]:
    return {"seconds": sum(sum(part().values()) for part in parts)}


def configs_path(operation: str) -> Path:
    """The table of an operation."""
    return Path(gpu.__file__).parent / operation / "configs.json"


def write(operation: str, kernel: str, column: str, rows: Buckets) -> None:
    """Put a column into the table of an operation, in place of the one that was there."""
    path = configs_path(operation)
    table = json.loads(path.read_text(encoding="utf-8"))
    table[kernel][column] = rows
    durable.write_text(path, text(table) + "\n")


def text(value: Any, indent: int = 0, used: int = 0) -> str:
    """JSON with everything on one line that fits into 120 columns."""
    line = json.dumps(value)
    if not isinstance(value, dict) or (indent and indent + used + len(line) < 120):
        return line
    inner = indent + 2
    entries = [f"{' ' * inner}{json.dumps(key)}: {text(item, inner, len(key) + 4)}" for key, item in value.items()]
    return "{\n" + ",\n".join(entries) + "\n" + " " * indent + "}"


def tune(operation: str, device: str) -> list[str]:
    """Tune all that the cases of an operation use, write what became faster: a line of a table for every row."""
    cases = [case for case in CASES[operation](device, False) if case.inputs(0)]
    if not cases:
        return [f"| {operation} | - | - | keeps its results to itself, which cannot be compared: not tuned | - | - |"]
    tuner, lines = Tuner(cases, device), []
    for place in sorted(set().union(*tuner.uses.values())):
        name, kernel, bucket = place
        before = gpu.table_rows(name, kernel)[bucket]
        faster = tuner.tune(place)
        after = tuner.tables[name, kernel][bucket]
        lines.append(f"| {name} | {kernel} | {bucket} | {_short(before)} | {_short(after)} | {faster:.2f} |")
    for (name, kernel), rows in tuner.tables.items():
        if rows != gpu.table_rows(name, kernel):
            write(name, kernel, gpu.architecture(), rows)
    print(*tuner.log, sep="\n")
    return lines


def _short(row: Row) -> str:
    return " ".join(f"{name}={value}" for name, value in row.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune the chosen operations and print what changed."""
    options = argparse.ArgumentParser(prog="omnitrunk bench tune", description=__doc__)
    options.add_argument("--op", choices=CASES, nargs="+", metavar="OP", help=f"what to tune: {', '.join(CASES)}")
    chosen = options.parse_args(arguments)
    if not torch.cuda.is_available():
        options.error("needs an NVIDIA GPU: settings are found by measuring")
    print("| operation | kernel | bucket | before | after | times faster |", "|---" * 6 + "|", sep="\n")
    for operation in chosen.op or CASES:
        print(*tune(operation, "cuda"), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
