from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from omnitrunk.engine import cli
from omnitrunk.engine.train import train
from tests.engine.data_files import write_folder
from tests.engine.tiny import needs_dali, tiny, write_config


@pytest.fixture
def trained(tmp_path, seed):
    for split, count in (("train", 12), ("val", 6)):
        write_folder(tmp_path / "data", split, count, np.random.default_rng(seed), height=40, width=40)
    config = tiny(tmp_path / "run", steps=2, data={"source": "folder", "root": str(tmp_path / "data"), "batch": 4})
    assert train(config) == 0
    return tmp_path / "run"


def test_help_needs_nothing_heavy():
    code = "import sys; from omnitrunk.engine import cli; cli._parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert not [line for line in done.stderr.splitlines() if " jsonargparse" in line or " numpy" in line]


def test_train_by_the_module(tmp_path):
    path = write_config(tmp_path / "c.toml", tiny(tmp_path / "run", steps=2))
    command = [sys.executable, "-m", "omnitrunk.engine", "train", str(path), "--log.every", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "step 1/2" in done.stdout and "step 2/2" in done.stdout


@needs_dali
def test_eval_and_show_of_a_run_and_of_a_checkpoint(trained, capsys):
    assert cli.main(["eval", str(trained), "--evaluate.neighbors", "3"]) == cli.DONE
    assert "3-nearest-neighbor" in capsys.readouterr().out
    checkpoint = trained / "checkpoints" / "step-00000002"
    assert (checkpoint / "evaluation.json").exists()
    picture = trained.parent / "sheet.png"
    assert cli.main(["show", str(checkpoint), "-o", str(picture), "--samples", "2"]) == cli.DONE
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_check_and_world_and_doctor(tmp_path, capsys):
    path = write_config(tmp_path / "c.toml", tiny(tmp_path / "run"))
    assert cli.main(["check", str(path), "--gpus", "2", "--gpu", "h100"]) == cli.DONE
    assert "2 x h100" in capsys.readouterr().out
    assert cli.main(["doctor"]) == cli.DONE
    assert cli.main(["world", str(tmp_path / "w"), "--scenes", "3"]) == cli.BAD_USAGE
    assert "scenes = 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["bench", "--help"], "usage: omnitrunk bench [-h] [--debug]"),
        (["bench", "-h", "step"], "usage: omnitrunk bench [-h] [--debug]"),
        (["bench", "step", "--help"], "usage: omnitrunk bench step [-h]"),
        (["bench", "--debug", "step", "-h"], "usage: omnitrunk bench step [-h]"),
    ],
)
def test_help_about_a_measurement_is_its_own(capsys, words, usage):
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 0 and capsys.readouterr().out.startswith(usage)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "s.png", "--samples", "0"], "--samples 0 must lie in 1 to 64"),
        (["-o", "s.png", "--samples", "-3"], "--samples -3 must lie in 1 to 64"),
        (["-o", "s.png", "--samples", "100000"], "--samples 100000 must lie in 1 to 64"),
        (["-o", "s"], "s must end as pictures do, such as .png or .jpg"),
        (["-o", "s.toml"], "s.toml must end as pictures do, such as .png or .jpg"),
        (["-o", "."], ". is a folder: name a file in it"),
        (["-o", "no/s.png"], "there is no folder no to write s.png to: make it first"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("omnitrunk.engine.restore.restore", lambda *_: pytest.fail("the model was restored"))
    assert cli.main(["show", "run", *words]) == cli.BAD_USAGE
    assert capsys.readouterr().err == f"omnitrunk: error: {said}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "nothing.toml"], 2, "cannot read the configuration nothing.toml"),
        (["train", "CONFIG", "--run.sedd", "3"], 2, "unknown field run.sedd; did you mean run.seed?"),
        (["train", "CONFIG", "--run.steps"], 2, "expected one argument"),
        (["train", "CONFIG", "extra"], 2, "extra"),
        (["train", "CONFIG", "--data.source", "folder"], 2, "data.root is not set"),
        (["train", "CONFIG", "--data.source", "folder", "--data.root", "no"], 2, "data.root no does not exist"),
        (["train", "CONFIG", "--data.source", "folder", "--data.root", "."], 2, "has no split train"),
        (["train", "CONFIG", "--model.keep", "49"], 2, "keep = 49 must lie in 1..48"),
        (["train", "CONFIG", "--data.batch", "7", "--optimizer.accumulate", "2"], 2, "set data.batch to a multiple"),
        (["eval", "no/run"], 2, "no/run is neither a complete checkpoint nor a run folder"),
        (["doctor", "--run.seed", "3"], 2, "doctor does not know --run.seed"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path / "c.toml", tiny("run"))
    assert cli.main([str(path) if word == "CONFIG" else word for word in arguments]) == code
    said = capsys.readouterr().err.strip()
    assert message in said and said.startswith("omnitrunk: error: ") and "\n" not in said


def test_the_unforeseen_is_one_line_with_its_kind_and_a_traceback_on_request(tmp_path, monkeypatch, capsys):
    path = write_config(tmp_path / "c.toml", tiny(tmp_path / "run"))
    monkeypatch.setattr("omnitrunk.engine.train.build", lambda *_: {}["nothing"])
    assert cli.main(["train", str(path)]) == cli.FAILED
    assert capsys.readouterr().err.strip() == "omnitrunk: error: KeyError: 'nothing'"
    assert cli.main(["train", str(path), "--debug"]) == cli.FAILED
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_exit_code_1(tmp_path, monkeypatch, capsys):
    path = write_config(tmp_path / "c.toml", tiny(tmp_path / "run"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("omnitrunk.engine.checkpoint.save_file", full)
    assert cli.main(["train", str(path)]) == cli.FAILED
    said = capsys.readouterr().err.strip()
    assert "No space left on device; make room and start again" in said and "\n" not in said
    monkeypatch.undo()
    assert cli.main(["train", str(path)]) == cli.DONE
