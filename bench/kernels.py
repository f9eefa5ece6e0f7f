"""omnitrunk bench kernels: every operation against its peers and against physics.

Ours and all peers that are installed take turns in one process, on rotating inputs. A row says what a call took and
what it must take at least on this machine (the floor: bytes, FLOP or exponentials, whichever takes longest at the rates
measured at the start), how far the result is from float64, and the most memory it used.
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen operations, print the table, write rows, table and roofline where asked."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() and not options.cpu else "cpu"
    rates = machine.rates(device, 0.3 if options.quick else 3.0)
    neighbors, table, start = machine.Neighbors(), [], time.monotonic()
    for operation in options.op or CASES:
        for case in CASES[operation](device, options.quick):
            rows = measure(case, device, rates, 3 if options.quick else options.rounds)
            table += [row | machine.context(options.threads, neighbors) for row in rows]
            print(report.progress(rows, time.monotonic() - start), flush=True)
    print("", report.markdown(table), "", report.rates(rates, device), sep="\n")
    print(f"In the end, {machine.disturbance(table[-1])}.")
    if options.json:
        harness.append_json(options.json, table)
    if options.plot:
        from omnitrunk.bench.roofline import draw

        draw(table, rates, options.plot)
    return 0


def measure(case: Case, device: str, rates: Mapping[str, float], rounds: int) -> list[dict[str, object]]:
    """Rows of a case: one for each contender and direction."""
    rotation = _rotation(case, device)
    turns = {name: stopwatch.contender(case, run, rotation, device) for name, run in case.contenders.items()}
    samples = harness.interleave(turns, rounds)
    for entry in (entry for entries in samples.values() for entry in entries if "backward" in entry):
        # An operation may do in one pass what another does in the other: only the sum compares them.
        entry[BOTH] = entry["forward"] + entry["backward"]
    rows = []
    for name, run in case.contenders.items():
        shared = {"operation": case.operation, "shape": case.shape, "dtype": _dtype(rotation[0]), "contender": name}
        shared |= {"error": error(case, run, rotation[0]), "peak_bytes": _peak(case, run, rotation[0], device)}
        for direction in samples[name][0]:
            values = [entry[direction] for entry in samples[name]]
            ratios = harness.paired_ratios(values, [entry[direction] for entry in samples[OURS]])
            row = shared | {"direction": direction, "rounds": len(values)} | harness.spread(values)
            row |= {f"ours_faster_{key}": value for key, value in harness.spread(ratios).items()}
            rows.append(row | _floor(case, direction, rates))
    return rows


def error(case: Case, run: stopwatch.Run, arguments: tuple) -> float | None:
    """Distance of a result from the definition in float64, relative to its norm."""
    if case.definition is None:
        return None
    with torch.no_grad():
        wide = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in arguments]
        result, truth = run(*arguments), case.definition(*wide)
        result, truth = (x if isinstance(x, torch.Tensor) else x[0] for x in (result, truth))
        return ((result.double() - truth).norm() / truth.norm()).item()


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
    options.add_argument("--rounds", type=int, default=20, help="measured calls of each contender")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options.add_argument("--cpu", action="store_true", help="measure the CPU although there is a GPU")
    options.add_argument("--json", type=Path, metavar="FILE", help="append the rows, one JSON object a line")
    options.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the roofline (needs matplotlib)")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
