"""The report of `omnitrunk bench gpu`: what the machine can do, what was checked, all tables, what failed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omnitrunk.bench import gpu_doctor, harness, report
from omnitrunk.engine import durable

Records = Mapping[str, Mapping[str, object]]


def write(out: Path, device: str, jobs: Sequence[str], done: Records) -> Path:
    """Write OUT/DEVICE.md from the rows of all measurements so far and the records of the jobs; returns its path."""
    path = out / f"{device}.md"
    durable.write_text(path, "\n".join(_text(out / device, device, jobs, done)) + "\n")
    return path


def _text(stem: Path, device: str, jobs: Sequence[str], done: Records) -> Iterator[str]:
    yield f"# Checks and measurements on {device}\n"
    for row in _rows(stem, "doctor")[-1:]:
        yield gpu_doctor.text(row) + "\n"
    yield "| job | result | seconds | last line |\n|---|---|---|---|"
    for job in jobs:
        record = done.get(job, {"status": "waiting", "seconds": "-", "said": []})
        last = " ".join(record["said"][-1:]).replace("|", "/")
        yield f"| {job} | {record['status']} | {record['seconds']} | {last} |"
    if rows := _rows(stem, "kernels"):
        yield f"\n## Kernels\n\n{report.markdown(rows)}"
    if rows := _rows(stem, "step"):
        yield f"\n## Training step\n\n{harness.markdown(rows)}"
    failed = [record for record in done.values() if record["status"] not in ("done", "interrupted")]
    for record in failed:
        yield "\n".join([f"\n## Failed: {record['job']}\n", "```", *record["said"], "```"])


def _rows(stem: Path, kind: str) -> list[dict[str, object]]:
    path = stem.with_name(f"{stem.name}-{kind}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
