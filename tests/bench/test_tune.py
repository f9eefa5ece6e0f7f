"""The tuner with a made-up kernel and a made-up clock: it takes what is faster and right, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from omnitrunk.bench import stopwatch, tune
from omnitrunk.bench.case import OURS, Case
from omnitrunk.kernels import gpu
from omnitrunk.kernels.cost import Cost

TABLE = {
    "kernel": {
        "default": {"64": {"ROWS": 4, "num_warps": 4}, "inf": {"ROWS": 4, "num_warps": 4}},
        "sm_80": {"inf": {"ROWS": 2, "num_warps": 8}},
    }
}


def made_up(width, wrong=()):
    """A case whose only kernel doubles its input, but not with rows of settings that are `wrong`."""

    def run(x):
        row = gpu.settings("made_up", "kernel", width)
        if row["num_warps"] == 16:
            raise RuntimeError("out of registers")
        return x * (3 if row["ROWS"] in wrong else 2)

    return Case(
        operation="made_up",
        shape=str(width),
        inputs=lambda seed: (torch.full((width,), 1.0 + seed, requires_grad=True),),
        contenders={OURS: run},
        forward=Cost(bytes=1),
        backward=Cost(bytes=1),
    )


@pytest.fixture
def stand(tmp_path, monkeypatch):
    """stand(seconds): the table in a file of its own, and a clock that shows seconds(row)."""
    path = tmp_path / "configs.json"
    path.write_text(tune.text(TABLE) + "\n")
    monkeypatch.setattr(gpu, "_table", lambda operation: TABLE)
    monkeypatch.setattr(gpu, "architecture", lambda: "sm_90")
    monkeypatch.setattr(tune, "configs_path", lambda operation: path)

    def contender(case, run, rotation, device):
        width = int(case.shape)
        return lambda: {"forward": clock(gpu.settings("made_up", "kernel", width)), "backward": 0.5}

    def clock(row):
        return clock.seconds(row)

    def start(seconds, *cases):
        clock.seconds = seconds
        monkeypatch.setattr(stopwatch, "contender", contender)
        monkeypatch.setitem(tune.CASES, "made_up", lambda device, quick: list(cases))
        gpu.settings.cache_clear()
        return path

    yield start
    gpu.settings.cache_clear()


def test_the_fastest_row_is_written_for_this_architecture_alone(stand, capsys):
    path = stand(lambda row: 1.0 + abs(row["ROWS"] - 16) + abs(row["num_warps"] - 2), made_up(64), made_up(100))
    lines = tune.tune("made_up", "cpu")
    expected = {"ROWS": 16, "num_warps": 2}
    assert json.loads(path.read_text()) == {"kernel": {**TABLE["kernel"], "sm_90": {"64": expected, "inf": expected}}}
    assert lines[0] == "| made_up | kernel | 64 | ROWS=4 num_warps=4 | ROWS=16 num_warps=2 | 10.33 |"
    assert gpu.settings("made_up", "kernel", 64) == {"ROWS": 4, "num_warps": 4}, "a trial outlived the tuner"


def test_a_fast_row_with_wrong_results_is_refused(stand, capsys):
    path = stand(lambda row: 1.0 / row["ROWS"], made_up(64, wrong=(8, 2)))
    before = path.read_text()
    tune.tune("made_up", "cpu")
    assert path.read_text() == before
    printed = capsys.readouterr().out
    assert '{"ROWS": 8, "num_warps": 4} passed over: other results' in printed


def test_a_row_that_does_not_run_is_passed_over(stand, capsys):
    path = stand(lambda row: 1.0 / row["num_warps"], made_up(64))
    tune.tune("made_up", "cpu")
    assert json.loads(path.read_text())["kernel"]["sm_90"]["64"] == {"ROWS": 4, "num_warps": 8}
    assert "RuntimeError: out of registers" in capsys.readouterr().out


def test_noise_changes_nothing(stand):
    path = stand(lambda row: 1.0 - 0.01 * (row["ROWS"] == 8), made_up(64))
    before = path.read_text()
    tune.tune("made_up", "cpu")
    assert path.read_text() == before


def test_only_the_row_of_the_bucket_is_tried(stand):
    stand(lambda row: 1.0, case := made_up(64))
    tuner = tune.Tuner([case], "cpu")
    assert tuner.uses == {0: {("made_up", "kernel", "64")}}
    with tuner._with(("made_up", "kernel", "64"), {"ROWS": 32, "num_warps": 1}):
        assert [gpu.settings("made_up", "kernel", size)["ROWS"] for size in (64, 65)] == [32, 4]


def test_neighbors_differ_in_one_parameter():
    row = {"ROWS": 1, "PERSISTENT": 0, "FUSED": False, "num_warps": 16, "num_stages": 1}
    changes = [{k: v for k, v in other.items() if v != row[k]} for other in tune.neighbors(row)]
    assert changes == [{"ROWS": 2}, {"PERSISTENT": 1}, {"FUSED": True}, {"num_warps": 8}, {"num_stages": 2}]


def test_what_cannot_be_compared_is_not_tuned(stand):
    stand(lambda row: 1.0, Case(operation="made_up", shape="1", inputs=lambda seed: (), contenders={}, forward=Cost()))
    assert "not tuned" in tune.tune("made_up", "cpu")[0]


def test_tables_are_written_as_they_are_kept():
    for path in Path(gpu.__file__).parent.glob("*/configs.json"):
        table = json.loads(path.read_text())
        assert json.loads(tune.text(table)) == table
        assert max(map(len, tune.text(table).splitlines())) <= 120


def test_a_launcher_takes_what_is_tried():
    triton_kernels = pytest.importorskip("omnitrunk.kernels.layer_norm.triton_kernels", reason="needs Triton")
    seen, launch = [], gpu.launch
    try:
        gpu.launch = lambda kernel, grid, *arguments, **settings: seen.append((grid, settings["num_warps"]))
        with gpu.trying("layer_norm", "forward", {"inf": {"ROWS": 16, "num_warps": 2}}):
            triton_kernels.layer_norm(*(gpu.example(*shape) for shape in ((64, 32), (32,), (32,))))
    finally:
        gpu.launch = launch
    assert seen == [((4,), 2)]


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tune.main([])
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
