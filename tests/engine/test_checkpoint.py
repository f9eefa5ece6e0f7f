from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from omnitrunk.engine import checkpoint, durable
from omnitrunk.engine.jsonlines import JsonLines


def some_tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"model": {"a.weight": torch.randn(3, 5, generator=generator), "b": torch.randn(7, generator=generator)}}


def some_state(step):
    return {"step": step, "samples_seen": 8 * step, "seed": 0, "fingerprint": "f", "meters": {}, "config": {}}


def save(run, step, seed=0, keep=2):
    return checkpoint.save(run, step, some_tensors(seed + step), some_state(step), keep)


def test_what_is_saved_is_read_back(tmp_path, seed):
    folder = save(tmp_path, 12, seed)
    assert checkpoint.find(tmp_path) == folder and checkpoint.find(folder) == folder
    assert checkpoint.read_state(folder) == some_state(12)
    for name, tensor in some_tensors(seed + 12)["model"].items():
        assert torch.equal(checkpoint.read_tensors(folder, "model")[name], tensor)
    assert checkpoint.read_average(folder) is None


def test_the_newest_stay_and_latest_follows(tmp_path):
    for step in (3, 20, 100):
        save(tmp_path, step)
        assert (tmp_path / "latest").resolve() == checkpoint.complete(tmp_path)[-1]
    assert [folder.name for folder in checkpoint.complete(tmp_path)] == ["step-00000020", "step-00000100"]


def test_leftovers_are_removed_and_never_loaded(tmp_path):
    good = save(tmp_path, 5)
    torn, aside = good.with_name("step-00000009"), durable.aside(good.with_name("step-00000010"))
    for folder in (torn, aside):
        folder.mkdir()
        (folder / "state.json").write_text("{")
    durable.point(tmp_path / "latest", "checkpoints/step-00000009")
    assert checkpoint.find(tmp_path) == good
    checkpoint.clean(tmp_path)
    assert os.listdir(tmp_path / "checkpoints") == [good.name]
    assert (tmp_path / "latest").resolve() == good


def test_what_somebody_put_there_stays(tmp_path):
    good = save(tmp_path, 5)
    copies = [good.with_name(name) for name in ("best-step-00000005", "step-00000005-copy", "notes")]
    for copy in copies:
        copy.mkdir()
    checkpoint.clean(tmp_path)
    assert all(copy.exists() for copy in copies) and checkpoint.complete(tmp_path) == [good]


@pytest.mark.parametrize("call", ["save_file", "sync", "mark"])
def test_a_full_disk_is_one_line_and_costs_nothing(tmp_path, monkeypatch, call):
    good = save(tmp_path, 5)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_arguments, **_options):
        raise full

    if call == "mark":
        monkeypatch.setattr("pathlib.Path.touch", fail)
    else:
        monkeypatch.setattr(checkpoint if call == "save_file" else durable, call, fail)
    with pytest.raises(OSError, match=r"cannot save checkpoint .*step-00000009: No space left on device") as error:
        save(tmp_path, 9)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert os.listdir(tmp_path / "checkpoints") == [good.name]
    assert checkpoint.find(tmp_path) == good
    assert save(tmp_path, 9).name == "step-00000009"


FILE_SIZE_LIMIT = """
import resource, sys, pathlib, torch
from omnitrunk.engine import checkpoint
run = pathlib.Path(sys.argv[1])
checkpoint.save(run, 1, {"model": {"a": torch.zeros(10)}}, {"step": 1}, 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    checkpoint.save(run, 2, {"model": {"a": torch.zeros(100_000)}}, {"step": 2}, 2)
except OSError as error:
    print(error)
"""


def test_a_write_that_the_system_cuts_short(tmp_path):
    """The same through a real failing write: the limit on the size of files gives EFBIG in the middle of one."""
    done = subprocess.run([sys.executable, "-c", FILE_SIZE_LIMIT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step-00000002: " in done.stdout and "File too large" in done.stdout
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_damage_is_named(tmp_path):
    folder = save(tmp_path, 5)
    (folder / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match=r"checkpoint .* is damaged: model\.safetensors"):
        checkpoint.read_tensors(folder, "model")
    (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"is damaged: state\.json"):
        checkpoint.read_state(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is damaged: model\.safetensors: there is no such file; delete it to"):
        checkpoint.read_tensors(folder, "model")


@pytest.mark.parametrize(("text", "lost"), [("{}", "step"), ("[]", "step"), ('{"step": 5, "samples_seen": 9}', "seed")])
def test_a_state_that_lacks_something_is_damaged(tmp_path, text, lost):
    folder = save(tmp_path, 5)
    (folder / "state.json").write_text(text)
    with pytest.raises(ValueError, match=rf"is damaged: state\.json: there is no {lost} in it; delete it to use"):
        checkpoint.read_state(folder)


def test_a_folder_without_permission_is_told_apart_from_a_full_disk(tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(OSError, match=r"Permission denied; check the permissions of .* and start again") as error:
        save(tmp_path, 9)
    assert "make room" not in str(error.value)


def test_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="neither a complete checkpoint nor a run folder with one"):
        checkpoint.find(tmp_path)


def test_another_model_is_named_by_its_first_difference():
    model = torch.nn.Linear(3, 2)
    config, tensors = {"width": 3, "depth": 1}, model.state_dict()
    checkpoint.check_same_model("here", config, config, tensors, model)
    with pytest.raises(ValueError, match=r"another model: model\.depth was 2 and is 1"):
        checkpoint.check_same_model("here", {**config, "depth": 2}, config, tensors, model)
    with pytest.raises(ValueError, match=r"weight is \(2, 4\) there and \(2, 3\) here"):
        checkpoint.check_same_model("here", config, config, {**tensors, "weight": torch.zeros(2, 4)}, model)
    with pytest.raises(ValueError, match=r"bias is missing there and \(2,\) here"):
        checkpoint.check_same_model("here", config, config, {"weight": tensors["weight"]}, model)


def test_a_log_continues_at_its_step(tmp_path, seed):
    path, random = tmp_path / "log.jsonl", np.random.default_rng(seed)
    records = [{"step": step, "loss": random.random()} for step in (2, 4, 6)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 4, "lo')
    log = JsonLines(path, 4)
    log.write({"step": 6, "loss": 0.5})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*records[:2], {"step": 6, "loss": 0.5}]
