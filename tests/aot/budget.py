"""Budgets: what every shipped configuration may take, one committed file per operation.

The files hold what the compiler of requirements.txt gave when they were written. A kernel that takes more than that
(with a little room, since compilers differ) or touches the stack has lost speed without a GPU noticing.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.aot import build, record

FOLDER = Path(__file__).parent / "budgets"
ROOM = {"registers": 1.1, "shared": 1.0, "instructions": 1.15, "stack": 1.0, "spills": 1.0}
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}

Table = dict[str, dict[str, int]]


def measure(operation: str) -> Table:
    """'sm_90 | case: kernel' -> resources, for all architectures, compiled two at a time."""
    jobs = [
        (f"sm_{architecture} | {name}", launch, architecture)
        for architecture in record.ARCHITECTURES
        for name, launch in record.launches(operation, architecture).items()
    ]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        rows = pool.map(build.resources, [job[1] for job in jobs], [job[2] for job in jobs])
        return {name: row for (name, _, _), row in zip(jobs, rows, strict=True)}


def read(operation: str) -> Table:
    """The committed budget of an operation."""
    path = FOLDER / f"{operation}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(operation: str, measured: Table) -> None:
    """Make what was measured the budget."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in measured.items())
    (FOLDER / f"{operation}.json").write_text("{\n" + rows + "\n}\n")


def excesses(measured: Table, allowed: Table) -> list[str]:
    """One line for everything that stands against the budget."""
    found = [f"{name}: no budget; run python -m tests.aot write" for name in measured.keys() - allowed.keys()]
    found += [f"{name}: in the budget, but no longer shipped" for name in allowed.keys() - measured.keys()]
    for name in measured.keys() & allowed.keys():
        row, limit = measured[name], allowed[name]
        found += [
            f"{name}: {what} {row[what]}, more than {limit[what]}"
            for what, room in ROOM.items()
            if row[what] > limit[what] * room
        ]
        found += [
            f"{name}: {what} {row[what]}, less than {limit[what]}"
            for what in ("widest_access", "wgmma", "mma")
            if min(row[what], 1) < min(limit[what], 1) or (what == "widest_access" and row[what] < limit[what])
        ]
        architecture = int(name.split()[0].removeprefix("sm_"))
        if row["shared"] > SHARED_LIMIT[architecture]:
            found.append(f"{name}: {row['shared']} bytes of shared memory do not fit")
    return found
