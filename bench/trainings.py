"""Experiments made of many trainings: each is a run in processes of its own, which goes on where it was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnitrunk.engine import checkpoint
from omnitrunk.engine.config import load

Row = dict[str, Any]


def run_recipe(path: Path, threads: int) -> tuple[Row, Row]:
    """Train a recipe, or go on with it: the scores of its evaluation, and the last line of its log."""
    folder = Path(load(path).run.folder)
    _omnitrunk(["train", str(path)], threads)
    *_, last = (folder / "log.jsonl").read_text().splitlines()
    return json.loads((checkpoint.find(folder) / checkpoint.SCORES).read_text()), json.loads(last)


def measured(path: Path, settings: Mapping[str, object]) -> list[Row]:
    """The rows of earlier calls with the same settings."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if all(row[name] == value for name, value in settings.items())]


def threads_of(jobs: int) -> int:
    """Threads of each of so many trainings at a time, which share the cores."""
    return max(1, (os.cpu_count() or 1) // jobs)


def _omnitrunk(words: Sequence[str], threads: int) -> None:
    command = [sys.executable, "-m", "omnitrunk.engine", *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise ValueError(f"{' '.join(words)} ended with {run.returncode}: {(run.stderr or run.stdout).strip()[-500:]}")
