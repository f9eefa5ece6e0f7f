from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omnitrunk.engine.train import train
from tests.engine.tiny import log_of, tiny, weights_of, write_config

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*command):
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    print(done.stdout, done.stderr)
    return done


def pairs(*jobs):
    """The exit codes of both processes of every job, run one after the other."""
    done = run(sys.executable, "-m", "tests.engine.processes", *map(str, jobs))
    return [line.removeprefix("codes ") for line in done.stdout.splitlines() if line.startswith("codes ")]


def test_two_processes_under_torchrun_are_one(tmp_path, seed):
    """Equal losses to rounding, with micro-batches and with `keep` able to cover an input, where weights are shared."""
    options = {
        "steps": 8,
        "run": {"seed": seed},
        "log": {"every": 2},
        "model": {"keep": 30, "alphas": 0.3},
        "optimizer": {"accumulate": 2, "clip": 1.0, "ema_decay": 0.9},
    }
    one, two = tiny(tmp_path / "one", **options), tiny(tmp_path / "two", **options)
    assert train(one) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run(*launcher, "-m", "omnitrunk.engine", "train", str(write_config(tmp_path / "two.toml", two)))
    assert done.returncode == 0
    assert "on 2 processes in 2 parts each" in done.stdout
    for record, expected in zip(log_of(two), log_of(one), strict=True):
        assert record == pytest.approx(expected, rel=1e-4)


def test_a_signal_to_one_process_stops_both_after_a_checkpoint(tmp_path, seed):
    runs = {name: tiny(tmp_path / name, run={"seed": seed}) for name in ("whole", "SIGTERM", "SIGINT")}
    whole, term, interrupt = (write_config(tmp_path / f"{name}.toml", config) for name, config in runs.items())
    assert pairs(whole, f"{term}:SIGTERM:1:6", f"{interrupt}:SIGINT:0:5") == ["0 0", "75 75", "75 75"]
    for name, steps in (("SIGTERM", (6, 7)), ("SIGINT", (5, 6))):  # agreed one step late
        newest = (tmp_path / name / "latest").resolve()
        assert (newest / "COMPLETE").exists()
        assert json.loads((newest / "state.json").read_text())["step"] in steps
    assert pairs(term, interrupt) == ["0 0", "0 0"]
    for name in ("SIGTERM", "SIGINT"):
        assert log_of(runs[name]) == log_of(runs["whole"])
        assert weights_of(runs[name]) == weights_of(runs["whole"])


def test_when_the_main_process_fails_the_other_does_not_wait(tmp_path):
    """A file stands where the checkpoints' folder would be, which only the main process finds out."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    assert pairs(write_config(tmp_path / "run.toml", tiny(tmp_path / "run"))) == ["1 1"]
