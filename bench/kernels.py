"""omnitrunk bench kernels: every operation against its peers and against physics.

Ours and all peers that are installed take turns in one process, on rotating inputs; where a peer is slow it is in fewer
rounds, never in fewer than three. A row says what a call took and what it must take at least on this machine (the
floor: bytes, FLOP or exponentials, whichever takes longest at the rates measured at the start), in how many turns that
was measured, how far the result is from float64, and the most memory it used. With --json a case is in the file as
soon as it is measured, in place of what the file had about the same case on the same device.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from omnitrunk.bench import harness, machine, report, stopwatch
from omnitrunk.bench.case import OURS, Case
from omnitrunk.bench.cases import CASES

BOTH = "forward + backward"
CACHE = {"cpu": 64e6, "cuda": 120e6}
"""Inputs that rotate are together larger than this many bytes: twice the last cache of the device."""
BUDGET = 1.5
"""Seconds that the turns of a contender on a case may take together, beyond the fewest that everyone gets."""
CASE_FIELDS = ("operation", "shape", "dtype", "device", "threads")
"""What rows of a case have in common; they are measured, and replaced, together."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen operations, print the table, write rows, table and roofline where asked."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() and not options.cpu else "cpu"
    rates = machine.rates(device, 0.3 if options.quick else 3.0)
    neighbors, table, start = machine.Neighbors(), [], time.monotonic()
    for case in (case for name in options.op or CASES for case in CASES[name](device, options.quick)):
        meanwhile = machine.Neighbors()
        rows = measure(case, device, rates, 3 if options.quick else options.rounds)
        context = machine.context(options.threads, meanwhile)
        rows = [row | context for row in rows]
        table += rows
        if options.json:
            harness.replace_json(options.json, rows, CASE_FIELDS)
        print(report.progress(rows, time.monotonic() - start), flush=True)
    print("", report.markdown(table), "", report.rates(rates, device), sep="\n")
    print(f"In the end, {machine.disturbance({'cores_of_others': neighbors.cores()})}.")
    if options.plot:
        from omnitrunk.bench.roofline import draw

        draw(table, rates, options.plot)
    return 0


def measure(case: Case, device: str, rates: Mapping[str, float], rounds: int) -> list[dict[str, object]]:
    """Rows of a case: one for each contender and direction."""
    rotation = _rotation(case, device)
    timed = {name: stopwatch.contender(case, run, rotation, device) for name, run in case.contenders.items()}
    samples = harness.interleave(timed, rounds, budget=BUDGET)
    for parts in (parts for turns in samples.values() for parts in turns.values() if "backward" in parts):
        # An operation may do in one pass what another does in the other: only the sum compares them.
        parts[BOTH] = parts["forward"] + parts["backward"]
    rows, truth = [], definition(case, rotation[0])
    for name, run in case.contenders.items():
        shared = {"operation": case.operation, "shape": case.shape, "dtype": _dtype(rotation[0]), "contender": name}
        shared |= {"error": error(run, rotation[0], truth), "peak_bytes": _peak(case, run, rotation[0], device)}
        for direction in samples[name][0]:
            values = [parts[direction] for parts in samples[name].values()]
            ratios = harness.paired_ratios(samples[name], samples[OURS], direction)
            row = shared | {"direction": direction, "turns": len(values)} | harness.spread(values)
            row |= {f"ours_faster_{key}": value for key, value in harness.spread(ratios).items()}
            rows.append(row | _floor(case, direction, rates))
    return rows


@torch.no_grad()
def definition(case: Case, arguments: tuple) -> torch.Tensor | None:
    """The first result of a case's definition in float64; None where the case has none."""
    if case.definition is None:
        return None
    wide = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in arguments]
    return _first(case.definition(*wide))


@torch.no_grad()
def error(run: stopwatch.Run, arguments: tuple, truth: torch.Tensor | None) -> float | None:
    """Distance of a result from that of the definition, relative to the norm of the latter; None without one."""
    if truth is None:
        return None
    return ((_first(run(*arguments)).double() - truth).norm() / truth.norm()).item()


def _first(results: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    return results if isinstance(results, torch.Tensor) else results[0]


def _rotation(case: Case, device: str) -> list[tuple]:
    first = case.inputs(0)
    size = sum(value.nbytes for value in first if isinstance(value, torch.Tensor))
    count = min(8, max(2, int(CACHE[device] / max(size, 1))))
    return [first, *(case.inputs(seed) for seed in range(1, count))]


def _dtype(arguments: tuple) -> str:
    dtype = next((x.dtype for x in arguments if isinstance(x, torch.Tensor) and x.is_floating_point()), torch.float32)
    return str(dtype).removeprefix("torch.")


def _peak(case: Case, run: stopwatch.Run, arguments: tuple, device: str) -> int:
    with torch.set_grad_enabled(case.backward is not None):
        results = stopwatch.tensors(run(*arguments)) if case.backward else []
    return stopwatch.peak_bytes(run, arguments, [torch.ones_like(result) for result in results], device)


def _floor(case: Case, direction: str, rates: Mapping[str, float]) -> dict[str, object]:
    cost = {"forward": case.forward, "backward": case.backward}.get(direction) or case.forward + case.backward
    walls = {"memory": cost.bytes / rates["bytes_per_s"], "compute": cost.flop / rates["flop_per_s"]}
    walls["exponentials"] = cost.exps / rates["exps_per_s"]
    wall = max(walls, key=walls.__getitem__)
    return {"least_bytes": cost.bytes, "flop": cost.flop, "exps": cost.exps, "floor": walls[wall], "wall": wall}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="omnitrunk bench kernels", description=__doc__)
    options.add_argument("--op", choices=CASES, nargs="+", metavar="OP", help=f"what to measure: {', '.join(CASES)}")
    options.add_argument("--quick", action="store_true", help="one small shape each, three rounds; under two minutes")
    options.add_argument("--rounds", type=int, default=20, help="measured calls of each contender that is not slow")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options.add_argument("--cpu", action="store_true", help="measure the CPU although there is a GPU")
    options.add_argument("--json", type=Path, metavar="FILE", help="keep the rows here, one JSON object a line")
    options.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the roofline (needs matplotlib)")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
