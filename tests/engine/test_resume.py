from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from omnitrunk.engine import checkpoint
from omnitrunk.engine.train import train
from tests.engine import omnivore_files
from tests.engine.data_files import write_folder
from tests.engine.tiny import log_of, needs_dali, tiny, weights_of, write_config

ROOT = Path(__file__).parents[2]


@needs_dali
def test_a_run_killed_at_random_is_the_run_that_was_never_killed(tmp_path, seed):
    """SIGKILL in a step, in the middle of a save, and at any moment; 24 samples are 3 steps, so also in mid-epoch."""
    write_folder(tmp_path / "data", "train", 24, np.random.default_rng(seed), height=40, width=40)
    broken = sorted((tmp_path / "data").rglob("*.jpg"))[3]
    broken.write_bytes(broken.read_bytes()[:-20])
    options = {
        "steps": 17,
        "run": {"seed": seed},
        "data": {"source": "folder", "root": str(tmp_path / "data"), "bad_fraction": 0.5},
        "optimizer": {"ema_decay": 0.9, "clip": 1.0, "accumulate": 2},
        "model": {"drop_path": 0.2},
    }
    whole, killed = tiny(tmp_path / "whole", **options), tiny(tmp_path / "killed", **options)
    assert train(whole) == 0
    train_killed(killed, tmp_path / "killed.toml", seed)
    assert log_of(whole)[-1]["faulty_samples"] > 0
    assert_equal_runs(killed, whole)


@needs_dali
def test_a_run_over_several_data_sets_is_as_safe(tmp_path, seed):
    root = omnivore_files.scenes(tmp_path, seed)
    options = {"run": {"seed": seed, "steps": 17}, "optimizer": {"ema_decay": 0.9}, "checkpoint": {"every": 4}}
    mixture = {"sets": {"pictures": {}, "clips": {}, "views": {}}, "accumulate": {"clips": 2}}
    whole, killed = (
        omnivore_files.joint(tmp_path / name, root, mixture=mixture, log={"every": 3}, **options)
        for name in ("whole", "killed")
    )
    assert train(whole) == 0
    train_killed(killed, tmp_path / "killed.toml", seed)
    assert_equal_runs(killed, whole)


def train_killed(config, path, seed):
    """Train a configuration, written to `path`, in a process that is killed again and again."""
    command = [sys.executable, "-m", "tests.engine.crashing", str(write_config(path, config)), str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.environ.get("OMP_NUM_THREADS", 1))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": killed") >= 3


def assert_equal_runs(killed, whole):
    """Log, weights, averages and the optimizer's state, to the last bit; nothing unfinished is left."""
    assert log_of(killed) == log_of(whole)
    assert weights_of(killed) == weights_of(whole)
    for name in ("ema", "optimizer"):
        files = [Path(config.run.folder) / "latest" / f"{name}.safetensors" for config in (killed, whole)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert not list(Path(killed.run.folder).rglob("*aside*"))


def test_a_run_goes_on_with_another_batch_and_more_steps(tmp_path, seed):
    """The state of the data is the number of samples seen, not of steps."""
    train(tiny(tmp_path / "run", steps=4, run={"seed": seed}))
    longer = tiny(tmp_path / "run", steps=6, run={"seed": seed}, data={"batch": 4})
    assert train(longer) == 0
    state = checkpoint.read_state(checkpoint.find(tmp_path / "run"))
    assert (state["step"], state["samples_seen"]) == (6, 4 * 8 + 2 * 4)


@pytest.mark.parametrize("name", ["optimizer", "model"])
def test_a_lost_file_of_a_checkpoint_is_one_line(tmp_path, name):
    train(tiny(tmp_path / "run", steps=2))
    (checkpoint.find(tmp_path / "run") / f"{name}.safetensors").unlink()
    said = rf"step-00000002 is damaged: {name}\.safetensors: there is no such file; delete it to use the one before"
    with pytest.raises(ValueError, match=said):
        train(tiny(tmp_path / "run", steps=4))


def test_the_window_of_the_log_is_part_of_the_checkpoint(tmp_path, seed, monkeypatch):
    """Stopped and resumed between two log steps, a run logs the same means."""
    whole, parted = (tiny(tmp_path / name, run={"seed": seed}, log={"every": 5}) for name in ("whole", "parted"))
    train(whole)
    from omnitrunk.engine.distributed import Vote

    for _ in range(4):
        with monkeypatch.context() as patch:
            votes = iter(range(100))
            patch.setattr(Vote, "cast", lambda vote, flag, votes=votes: next(votes) == 2)
            code = train(parted)
        assert code == (0 if len(log_of(parted)) == 3 else 75)
    assert log_of(parted) == log_of(whole)
    assert weights_of(parted) == weights_of(whole)
