"""`omnitrunk bench kernels`: contenders agree, memory is counted, rows are kept, a trial run."""

from __future__ import annotations

import json

import pytest
import torch

from omnitrunk.bench import kernels, stopwatch
from omnitrunk.bench.case import OURS
from omnitrunk.bench.cases import CASES as OPERATIONS


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_contenders_of_an_operation_agree(operation, capsys):
    """All contenders of the quick cases run, forward and backward, and none is far from the definition."""
    rates = {"bytes_per_s": 1e10, "flop_per_s": 1e11, "exps_per_s": 1e9}
    for case in OPERATIONS[operation]("cpu", True):
        rows = kernels.measure(case, "cpu", rates, 1)
        assert {row["contender"] for row in rows} == set(case.contenders) and OURS in case.contenders
        both = ["backward", "forward + backward"] if case.backward else []
        assert {row["direction"] for row in rows} == {"forward", *both}
        for row in rows:
            assert row["error"] is None or row["error"] < 1e-4 or "without" in row["contender"], row
            assert row["floor"] > 0 and row["peak_bytes"] >= 0


def test_peak_memory_counts_what_lives_together():
    def run(x):
        first = x + 1
        second = first + 1
        del first
        return second + 1

    x = torch.zeros(250_000)
    assert stopwatch.peak_bytes(run, (x,), [], "cpu") == pytest.approx(2e6, rel=0.01)


def test_a_quick_run_prints_a_table_and_writes_rows_and_picture(tmp_path, capsys):
    rows, picture = tmp_path / "rows.jsonl", tmp_path / "roofline.png"
    options = ["--quick", "--op", "sample_mask", "layer_norm", "--threads", "1", "--cpu"]
    assert kernels.main([*options, "--json", str(rows), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    for row in read(rows):
        assert row["turns"] == 3 and row["p10"] <= row["median"] <= row["p90"]
        assert row["commit"] and row["command"] and row["device"]
    assert "| layer_norm | ViT-B: 3200 x 768 | float32 | backward | 3 |" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_run_keeps_what_it_measured_and_the_next_replaces_it(tmp_path, monkeypatch, capsys):
    rows, measure = tmp_path / "rows.jsonl", kernels.measure
    options = ["--quick", "--threads", "1", "--cpu", "--json", str(rows)]

    def interrupted(case, *others):
        if case.operation == "layer_norm":
            raise KeyboardInterrupt
        return measure(case, *others)

    monkeypatch.setattr(kernels, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernels.main([*options, "--op", "sample_mask", "layer_norm"])
    first = read(rows)
    assert {row["operation"] for row in first} == {"sample_mask"}
    assert kernels.main([*options, "--op", "gather_tokens", "sample_mask"]) == 0
    again = read(rows)
    assert [row["operation"] for row in again][-len(first) :] == ["sample_mask"] * len(first)
    assert len({(row["operation"], row["contender"], row["direction"]) for row in again}) == len(again)
    assert not {json.dumps(row) for row in first} & {json.dumps(row) for row in again}
