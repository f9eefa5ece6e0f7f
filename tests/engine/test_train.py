from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from omnitrunk.engine import hooks
from omnitrunk.engine import train as loop
from omnitrunk.engine.build import build
from omnitrunk.engine.config import load
from omnitrunk.engine.distributed import World, choose_device
from omnitrunk.engine.meters import Meters
from omnitrunk.engine.progress import ProgressBar
from omnitrunk.engine.step import dry_step, train_step
from omnitrunk.engine.train import train
from omnitrunk.kernels import use
from omnitrunk.models import MultiMAE
from tests.engine.data_files import break_samples, write_folder
from tests.engine.tiny import log_of, needs_dali, tiny, weights_of

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def states(run):
    """Every number that a step may change."""
    average = run.optimizer.ema or []
    return [t.clone() for t in (*run.model.state_dict().values(), *run.optimizer.state_dict().values(), *average)]


@needs_dali
def test_a_last_evaluation_that_was_cut_short_is_made_by_the_next_call(tmp_path, seed, monkeypatch, capsys):
    for split, samples in (("train", 16), ("val", 8)):
        write_folder(tmp_path / "data", split, samples, np.random.default_rng(seed), height=40, width=40)
    data, measure = {"source": "folder", "root": str(tmp_path / "data")}, {"every": 2, "neighbors": 3}
    whole, cut = (tiny(tmp_path / name, steps=4, run={"seed": seed}, data=data, evaluate=measure) for name in "ab")
    assert train(whole) == 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(hooks, "write_scores", Mock(side_effect=KeyboardInterrupt))
        train(cut)
    scores = [Path(config.run.folder) / "latest" / "evaluation.json" for config in (whole, cut)]
    assert not scores[1].exists()
    assert train(cut) == 0
    assert scores[1].read_text() == scores[0].read_text()
    lines = [(Path(config.run.folder) / "evaluation.jsonl").read_text() for config in (whole, cut)]
    assert lines[0] == lines[1] and log_of(whole) == log_of(cut)
    capsys.readouterr()
    assert train(cut) == 0 and "is finished" in capsys.readouterr().out


@needs_dali
def test_a_run_leaves_what_it_promises(tmp_path, seed, capsys):
    write_folder(tmp_path / "data", "train", 24, np.random.default_rng(seed), height=40, width=40)
    write_folder(tmp_path / "data", "val", 8, np.random.default_rng(seed + 1), height=40, width=40)
    config = tiny(
        tmp_path / "run",
        steps=7,
        run={"seed": seed},
        data={"source": "folder", "root": str(tmp_path / "data")},
        log={"images_every": 7, "tensorboard": True},
        evaluate={"every": 3, "neighbors": 3},
        optimizer={"ema_decay": 0.5},
    )
    assert train(config) == 0
    said = capsys.readouterr().out
    for begin in ("model    multimae", "data     ", "batch    8", "horizon  7", "machine  CPU", "done in "):
        assert begin in said
    assert "raw input" in said and "ETA" in said and "\r" not in said
    records = log_of(config)
    assert [record["step"] for record in records] == [3, 6, 7]
    tasks = {"rgb", "depth", "semseg", "norm_rgb"}
    assert set(records[0]) == {"step", "loss", "grad_norm", "lr", "skipped", "faulty_samples"} | tasks
    assert records[1]["loss"] == pytest.approx(sum(records[1][task] for task in tasks))
    folder = Path(config.run.folder)
    assert {path.name for path in folder.iterdir()} >= {"config.toml", "latest", "samples", "evaluation.jsonl"}
    assert [path.name for path in (folder / "samples").iterdir()] == ["step-00000007.png"]
    assert list(folder.glob("events.out.tfevents.*"))
    saved = {path.name for path in (folder / "latest").iterdir()}
    assert saved >= {"COMPLETE", "ema.safetensors", "evaluation.json", "model.safetensors", "state.json"}
    assert load(folder / "config.toml") == config


def test_a_finished_run_says_so(tmp_path, capsys):
    config = tiny(tmp_path / "run", steps=2)
    assert train(config) == 0
    before = weights_of(config)
    assert train(config) == 0
    assert "is finished, 2 steps" in capsys.readouterr().out
    assert weights_of(config) == before and len(log_of(config)) == 1


def test_overwriting_deletes_the_run_and_nothing_else(tmp_path):
    config = tiny(tmp_path / "run", steps=2)
    train(config)
    other = tmp_path / "run" / "notes.txt"
    other.write_text("mine")
    before = weights_of(config)
    wrong = tiny(tmp_path / "run", run={"overwrite": True}, data={"source": "folder", "root": str(tmp_path / "no")})
    with pytest.raises(ValueError, match="does not exist"):
        train(wrong)
    assert weights_of(config) == before
    assert train(tiny(tmp_path / "run", steps=4, run={"overwrite": True, "seed": 1})) == 0
    assert [record["step"] for record in log_of(config)] == [3, 4]
    assert other.read_text() == "mine"
    assert not load(tmp_path / "run" / "config.toml").run.overwrite


@needs_dali
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"width": 24}}, r"holds another model: model\.width was 16 and is 24"),
        ({"run": {"seed": 1}}, r"was made with run\.seed 0, not 1"),
        ({"data": {"source": "folder", "root": "DATA"}}, "other data: fingerprint random, but data.root"),
        ({"data": {"source": "folder", "root": "EMPTY"}}, "EMPTY has no split train"),
        ({"evaluate": {"every": 5}}, "evaluate.every needs a data set"),
    ],
)
def test_what_cannot_go_on_is_one_line(tmp_path, monkeypatch, seed, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    write_folder(tmp_path / "DATA", "train", 8, np.random.default_rng(seed), height=40, width=40)
    train(tiny("run", steps=2))
    with pytest.raises(ValueError, match=message) as error:
        train(tiny("run", steps=4, **changes))
    assert "\n" not in str(error.value)


@needs_dali
def test_moved_data_is_the_same_data(tmp_path, seed):
    write_folder(tmp_path / "old", "train", 8, np.random.default_rng(seed), height=40, width=40)
    train(tiny(tmp_path / "run", steps=2, data={"source": "folder", "root": str(tmp_path / "old")}))
    os.rename(tmp_path / "old", tmp_path / "new")
    assert train(tiny(tmp_path / "run", steps=3, data={"source": "folder", "root": str(tmp_path / "new")})) == 0


@pytest.mark.parametrize("keep", [8, 30])
def test_accumulation_is_the_big_batch(tmp_path, seed, keep):
    """Also where `keep` can cover an input of 16 tokens completely, so that samples drop out of a loss."""
    logs, weights = [], []
    for parts in (1, 4):
        changes = {"model": {"keep": keep, "alphas": 0.3}, "optimizer": {"accumulate": parts}, "run": {"seed": seed}}
        config = tiny(tmp_path / str(parts), steps=4, log={"every": 1}, **changes)
        train(config)
        logs.append(log_of(config))
        weights.append(weights_of(config))
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert weights[0] != weights[1]  # only to rounding, or the micro-batches were never made


def test_a_dry_step_leaves_no_trace(tmp_path, seed):
    run = build(tiny(tmp_path / "run", run={"seed": seed}, optimizer={"ema_decay": 0.9}), ALONE)
    with run.loader:
        before = states(run)
        dry_step(run.network, run.optimizer, next(run.loader), precision="fp32", world=ALONE)
        assert all(map(torch.equal, before, states(run)))
        assert all(parameter.grad is None for parameter in run.optimizer.params)


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path, seed):
    run = build(tiny(tmp_path / "run", run={"seed": seed}, optimizer={"ema_decay": 0.9, "clip": 1.0}), ALONE)
    options = {"lr": 1e-3, "precision": "fp32", "world": ALONE}
    with run.loader:
        train_step(run.network, run.optimizer, run.loader, **options)
        before = states(run)
        spoilt = next(run.loader)
        spoilt.tensors["depth"].fill_(torch.inf)  # also of what is seen: a lost target alone has a finite gradient
        outcome = train_step(run.network, run.optimizer, iter([spoilt]), **options)
        assert bool(outcome.skipped) and all(map(torch.equal, before, states(run)))
        outcome = train_step(run.network, run.optimizer, run.loader, **options)
        assert not bool(outcome.skipped) and not all(map(torch.equal, before, states(run)))


def test_skipped_steps_are_counted_and_left_out_of_the_means(tmp_path, monkeypatch):
    config, calls = tiny(tmp_path / "run", steps=6), iter(range(100))
    total = MultiMAE._total
    spoilt = {3, 4, 5, 6}  # the first call is the dry step's
    monkeypatch.setattr(MultiMAE, "_total", lambda *a: total(*a) * (torch.nan if next(calls) in spoilt else 1.0))
    assert train(config) == 0
    first, second = log_of(config)
    assert (first["skipped"], second["skipped"]) == (1, 4)
    assert np.isfinite(first["loss"]) and np.isfinite(first["grad_norm"])
    assert second["loss"] is None and second["grad_norm"] is None


@needs_dali
def test_bad_files_are_counted_and_the_run_goes_on(tmp_path, seed):
    paths = write_folder(tmp_path / "data", "train", 24, np.random.default_rng(seed), height=40, width=40)
    break_samples(paths)
    data = {"source": "folder", "root": str(tmp_path / "data"), "bad_fraction": 0.9}
    config = tiny(tmp_path / "run", steps=6, data=data, run={"seed": seed})
    assert train(config) == 0
    first, second = log_of(config)
    assert 0 < first["faulty_samples"] <= second["faulty_samples"] and np.isfinite(second["loss"])


def test_tensorboard_shows_every_step_once_after_a_resume(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny(tmp_path / "run", log={"every": 1, "tensorboard": True}, checkpoint={"every": 5})
    calls, real = iter(range(1, 100)), loop.train_step

    def fail_late(*arguments, **options):
        if next(calls) == 9:
            raise RuntimeError("the power went out")
        return real(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr(loop, "train_step", fail_late)
        train(config)
    assert train(config) == 0
    board = EventAccumulator(config.run.folder)
    board.Reload()
    scalars = board.Scalars("loss")
    assert [scalar.step for scalar in scalars] == list(range(1, 13))
    assert [scalar.value for scalar in scalars] == pytest.approx([record["loss"] for record in log_of(config)])


def test_a_terminal_gets_a_bar_and_a_file_does_not(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, expected in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((120, 40)))
        bar = ProgressBar(8)
        bar.draw(4)
        bar.print("a line")
        assert ("\r[====================>" in stream.getvalue() and "] 4/8" in stream.getvalue()) == expected
        assert stream.getvalue().endswith("a line\n") and ("\r" in stream.getvalue()) == expected


def test_meters_in_two_halves_are_the_same_meters(seed):
    generator = torch.Generator().manual_seed(seed)
    whole, half = Meters(["a", "b"], ALONE), Meters(["a", "b"], ALONE)
    losses = 10 * torch.rand(40, 3, generator=generator)
    for number, (a, b, norm) in enumerate(losses):
        values = ({"a": a, "b": b, "loss": a + b}, norm, torch.tensor(number % 7 == 0))
        whole.add(*values)
        half.add(*values)
        if number == 23:
            state, half = half.state(3), Meters(["a", "b"], ALONE)
            half.load(state)
    kept = losses[[number for number in range(40) if number % 7]].double()
    read = whole.read(3)
    assert read == half.read(0)
    assert read["a"] == pytest.approx(float(kept[:, 0].mean()), rel=1e-12)
    assert (read["skipped"], read["faulty_samples"]) == (6, 3)


def test_the_average_takes_the_place_of_the_weights_and_gives_it_back(tmp_path):
    run = build(tiny(tmp_path / "run", optimizer={"ema_decay": 0.5}), ALONE)
    with run.loader:
        for _ in range(3):
            train_step(run.network, run.optimizer, run.loader, lr=1e-2, precision="fp32", world=ALONE)
        weights = {name: value.clone() for name, value in run.model.state_dict().items()}
        average = {name: value.clone() for name, value in run.optimizer.averaged(run.model).items()}
        with run.optimizer.averaged_weights():
            assert all(torch.equal(value, average[name]) for name, value in run.model.state_dict().items())
        assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())
        assert any(not torch.equal(weights[name], average[name]) for name in weights)


def test_bf16_trains(tmp_path):
    config = tiny(tmp_path / "run", steps=30, run={"precision": "bf16"}, optimizer={"lr": 1e-2})
    assert train(config) == 0
    losses = [record["loss"] for record in log_of(config)]
    assert losses[-1] < losses[0]


def test_a_device_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(ValueError, match="needs GPU number 0 but 0 were found"):
        choose_device("cuda")


def test_a_step_never_reads_the_device(tmp_path, monkeypatch):
    """Every `.item()`, `.tolist()` or `bool()` of a tensor inside a step would make the host wait for a GPU.

    Backends for the CPU may decide on the host, so the definitions run here; they work on all devices alike.
    """
    run = build(tiny(tmp_path / "run", optimizer={"accumulate": 2, "clip": 1.0, "ema_decay": 0.9}), ALONE)
    batches = iter([next(run.loader), next(run.loader)])
    run.loader.close()

    def refuse(_tensor, *_arguments):
        raise AssertionError("the host reads the device")

    with use("reference"), monkeypatch.context() as patch:
        for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, name, refuse)
        outcome = train_step(run.network, run.optimizer, batches, lr=1e-3, precision="fp32", world=ALONE)
        run.meters.add(outcome.losses, outcome.grad_norm, outcome.skipped)
    assert run.meters.read(0)["loss"] > 0


@pytest.mark.gpu
def test_a_step_never_waits_for_the_gpu(tmp_path):
    """The same by the device's own account, through the backends that a GPU gets."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    world = World(rank=0, size=1, device=torch.device("cuda", 0))
    run = build(tiny(tmp_path / "run", optimizer={"clip": 1.0, "ema_decay": 0.9}), world)
    with run.loader:
        dry_step(run.network, run.optimizer, next(run.loader), precision="bf16", world=world)
        batches = iter([next(run.loader) for _ in range(3)])
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                outcome = train_step(run.network, run.optimizer, batches, lr=1e-3, precision="bf16", world=world)
                run.meters.add(outcome.losses, outcome.grad_norm, outcome.skipped)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert run.meters.read(0)["loss"] > 0
