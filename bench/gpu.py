"""omnitrunk bench gpu OUT: every check and measurement that needs a GPU, for a machine that is lent for minutes.

The work is cut into jobs, each a process of its own with a time limit. What is done stands in OUT/progress.jsonl, and
the same command goes on with the rest. A job that fails is recorded with the end of what it said, and stops no other.
OUT also receives the rows of all measurements, DEVICE-kernels.jsonl and DEVICE-step.jsonl, everything that was printed
under logs/, and DEVICE.md, the report. docs/gpu.md tells how to begin on a bare machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from omnitrunk.bench import gpu_report, harness
from omnitrunk.bench.cases import CASES
from omnitrunk.engine.hardware import gpu_named

PARTS = ("doctor", "correctness", "kernels", "step", "profile")
TRITON_TESTS = "tests/triton"
"""All of these run on a GPU where there is one; in the other files, those that are marked gpu."""
MARKED_TESTS = ("cuda/test_kernels", "cuda/test_gpu", "kernels/test_autocast", "engine/test_graphs")
REPOSITORY = Path(__file__).resolve().parents[1]
LEAST = 20.0
"""Seconds that must be left for a job to be started."""
TAIL = 40
"""Lines of a failed job's output that its record keeps."""
ALL_DONE, FAILED, MORE_TO_DO = 0, 1, 75


@dataclass(frozen=True, kw_only=True)
class Job:
    """A process: arguments of Python, the seconds it may take, and what its output contains if it did its work."""

    part: str
    name: str
    command: tuple[str, ...]
    seconds: float
    evidence: str = ""

    @property
    def key(self) -> str:
        """How the job is called in OUT/progress.jsonl."""
        return f"{self.part}: {self.name}"


def device_name(cpu: bool) -> str:
    """A short name for files: h200, for example."""
    if cpu:
        return "cpu"
    name = torch.cuda.get_device_name()
    known = gpu_named(name)
    return known.name if known else re.sub(r"\W+", "-", name.lower())


def jobs(out: Path, *, cpu: bool) -> list[Job]:
    """All jobs in their order; with `cpu` small ones, the Triton kernels in their interpreter."""
    stem, quick = str(out.resolve() / device_name(cpu)), ("--quick", "--cpu") if cpu else ()
    doctor = ("-m", "omnitrunk.bench.gpu_doctor", "--json", f"{stem}-doctor.jsonl", *quick)
    found = [Job(part="doctor", name="rates", command=doctor, seconds=120)]
    found += [_tests(path, cpu=cpu) for path in test_files()]
    kernels = ("-m", "omnitrunk.bench.kernels", *quick, "--json", f"{stem}-kernels.jsonl", "--op")
    found += [Job(part="kernels", name=name, command=(*kernels, name), seconds=240) for name in CASES]
    step = ("-m", "omnitrunk.bench.gpu_step", *quick, "--json", f"{stem}-step.jsonl", "--size")
    for size in ("tiny",) if cpu else ("base", "base-rgb", "large"):
        found.append(Job(part="step", name=size, command=(*step, size), seconds=300))
        found.append(Job(part="step", name=f"{size}, compiled", command=(*step, size, "--compile"), seconds=480))
    profile = ("-m", "omnitrunk.bench.gpu_step", *quick, "--profile", f"{stem}-profile.txt")
    found.append(Job(part="profile", name="step", command=(*profile, "--size", "tiny" if cpu else "base"), seconds=180))
    return found


def test_files() -> list[str]:
    """The test files that run on a GPU, relative to the repository."""
    found = sorted(path.name for path in (REPOSITORY / TRITON_TESTS).glob("test_*.py"))
    return [*(f"{TRITON_TESTS}/{name}" for name in found), *(f"tests/{name}.py" for name in MARKED_TESTS)]


def _tests(path: str, *, cpu: bool) -> Job:
    # The options of pyproject.toml need plugins that a bare machine lacks.
    options = ("-o", "addopts=", "--strict-markers", "-ra", "-q", "-p", "no:cacheprovider")
    marked = () if cpu or path.startswith(TRITON_TESTS) else ("-m", "gpu")
    command = ("-m", "pytest", *options, *marked, path)
    # Where a GPU should have been used and everything was skipped, nothing was checked.
    return Job(part="correctness", name=path, command=command, seconds=300, evidence="" if cpu else " passed")


def run(job: Job, limit: float, log: Path, *, cpu: bool) -> dict[str, object]:
    """Run a job for at most `limit` seconds: its record, with everything it printed in the file `log`."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if cpu:
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
    if cpu and job.name.startswith(TRITON_TESTS):
        environment |= {"TRITON_INTERPRET": "1"}
    start = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *job.command], cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    text = log.read_text(encoding="utf-8", errors="replace")
    record = {"job": job.key, "seconds": round(time.monotonic() - start, 1), "status": _status(job, code, limit, text)}
    lines = [line for line in text.splitlines() if line.strip()]
    return record | ({"said": lines[-1:]} if record["status"] == "done" else {"said": lines[-TAIL:], "code": code})


def _end(process: subprocess.Popen) -> None:
    """Kill a process with all its children; compilers leave some behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _status(job: Job, code: int | None, limit: float, text: str) -> str:
    if code is None:
        # Cut off by the end of this call, not by its own limit: the next call tries again.
        return "too slow" if limit >= job.seconds else "interrupted"
    return "done" if code == 0 and job.evidence in text else "failed"


def records(out: Path) -> dict[str, Mapping[str, object]]:
    """The last record of every job that has ended, by its key."""
    path = out / "progress.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {record["job"]: record for record in map(json.loads, lines)}


def waiting(todo: Sequence[Job], done: Mapping[str, Mapping[str, object]]) -> list[Job]:
    """The jobs that no call has finished, one way or another."""
    return [job for job in todo if done.get(job.key, {}).get("status", "interrupted") == "interrupted"]


def work(todo: Sequence[Job], out: Path, minutes: float, *, cpu: bool) -> None:
    """Run what is waiting, as much as fits into `minutes`."""
    end = time.monotonic() + 60 * minutes
    for job in waiting(todo, records(out)):
        left = end - time.monotonic()
        if left < min(LEAST, job.seconds):
            return
        log = out / "logs" / (re.sub(r"\W+", "-", job.key).strip("-") + ".txt")
        record = run(job, min(job.seconds, left), log, cpu=cpu)
        harness.append_json(out / "progress.jsonl", [record])
        print(f"{record['seconds']:6.1f} s  {record['status']:11} {job.key}", flush=True)
        if record["status"] not in ("done", "interrupted"):
            print("\n".join(f"          {line}" for line in record["said"]), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Go on with the work: 0 when all is done, 1 when something failed, 75 when there is more to do."""
    usage = parser()
    options = usage.parse_args(arguments)
    if not options.cpu and not torch.cuda.is_available():
        usage.error("no GPU here; --cpu tries everything out in small")
    options.out.mkdir(parents=True, exist_ok=True)
    every = jobs(options.out, cpu=options.cpu)
    todo = [job for job in every if job.part in (options.part or PARTS) and options.only in job.name]
    if not todo:
        usage.error(f"no job is named like {options.only!r}")
    work(todo, options.out, options.minutes, cpu=options.cpu)
    done = records(options.out)
    text = gpu_report.write(options.out, device_name(options.cpu), [job.key for job in every], done)
    left = waiting(todo, done)
    failed = [job for job in todo if job not in left and done[job.key]["status"] != "done"]
    print(f"{len(todo) - len(left)} of {len(todo)} jobs have ended, {len(failed)} badly; the report is {text}")
    if left:
        print(f"{len(left)} jobs are waiting: run the same command again")
    return FAILED if failed else MORE_TO_DO if left else ALL_DONE


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="omnitrunk bench gpu", description=__doc__)
    options.add_argument("out", type=Path, metavar="OUT", help="folder for progress, logs and results")
    options.add_argument("--part", choices=PARTS, nargs="+", help="only these parts (default: all, in this order)")
    options.add_argument("--only", default="", metavar="TEXT", help="only jobs with TEXT in their name")
    options.add_argument("--minutes", type=float, default=9.0, help="time of this call (default 9)")
    options.add_argument("--cpu", action="store_true", help="a trial in small on the CPU")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
