"""Compare this package with recorded numbers: `python -m tests.parity SYSTEM FOLDER [--float32]`.

Prints one row for each tensor (case, tensor, largest error, tolerance, verdict) and a summary. Exits with 1 when a
tensor misses its tolerance or the folder holds nothing to compare.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.parity import audiomae, m2pt, mae, multimae, omnimae, omnivore, pointmae, videomae
from tests.parity.folder import Check, Recorded, read_folder
from tests.parity.report import DOUBLE, SINGLE, Precision, Report

SYSTEMS: dict[str, Callable[[list[Recorded]], list[Check]]] = {
    "multimae": multimae.find,
    "mae": mae.find,
    "m2pt": m2pt.find,
    "videomae": videomae.find,
    "audiomae": audiomae.find,
    "pointmae": pointmae.find,
    "omnivore": omnivore.find,
    "omnimae": omnimae.find,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--float32", action="store_true", help="run our side in float32, with wider tolerances")
    options = parser.parse_args(arguments)
    try:
        report = compare(options.system, options.folder, SINGLE if options.float32 else DOUBLE)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(*report.rows, *report.notes, report.summary(), sep="\n")
    return 1 if report.misses else 0


def compare(system: str, folder: Path, precision: Precision) -> Report:
    """All comparisons that the files of `folder` allow; ValueError when there are none."""
    files = read_folder(folder)
    checks = SYSTEMS[system](files)
    if not checks:
        raise ValueError(f"no file in {folder} is a recording of {system}; give the folder of its recorded cases")
    report = Report()
    for check in checks:
        _run(check, report, precision)
    recognized = {name for check in checks for name in check.files}
    for file in files:
        if file.name not in recognized:
            report.not_covered(file.name, "the whole file")
    return report


def _run(check: Check, report: Report, precision: Precision) -> None:
    """A recording that cannot be compared counts as missed, and the others are still compared."""
    try:
        check.run(report, precision)
    except (ValueError, KeyError) as error:
        report.add(check.files[0], f"failed: {type(error).__name__}: {error}", float("inf"), 0.0)


if __name__ == "__main__":
    sys.exit(main())
