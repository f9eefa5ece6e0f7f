"""The script for machines with a GPU, tried out on the CPU: what is done stays done, what fails stops nothing."""

from __future__ import annotations

import json
import time

import pytest
import torch

from omnitrunk.bench import gpu, gpu_doctor, gpu_step

GOOD, BAD = ("-c", "print('3 passed')"), ("-c", "print('first'); raise SystemExit('no such thing')")


def job(name, command, **changes):
    return gpu.Job(**{"part": "kernels", "name": name, "command": command, "seconds": 60, **changes})


@pytest.fixture
def todo(monkeypatch):
    """todo(jobs): what the script thinks there is to do."""
    monkeypatch.setattr(gpu, "device_name", lambda cpu: "cpu")
    return lambda *found: monkeypatch.setattr(gpu, "jobs", lambda out, cpu: list(found))


def statuses(out):
    return {name: record["status"] for name, record in gpu.records(out).items()}


def test_a_failure_is_recorded_and_stops_nothing(tmp_path, todo, capsys):
    todo(job("one", BAD), job("two", GOOD), job("nothing", GOOD, evidence=" 4 passed"))
    assert gpu.main([str(tmp_path), "--cpu"]) == gpu.FAILED
    assert statuses(tmp_path) == {"kernels: one": "failed", "kernels: two": "done", "kernels: nothing": "failed"}
    assert gpu.records(tmp_path)["kernels: one"]["said"] == ["first", "no such thing"]
    assert "no such thing" in capsys.readouterr().out
    report = (tmp_path / "cpu.md").read_text()
    assert "| kernels: two | done |" in report and "## Failed: kernels: one" in report and "no such thing" in report
    assert (tmp_path / "logs" / "kernels-one.txt").read_text().startswith("first")


def test_the_next_call_goes_on_with_the_rest(tmp_path, todo, capsys):
    mark = tmp_path / "mark"
    once = ("-c", f"open({str(mark)!r}, 'x')")
    todo(job("one", once), job("two", GOOD))
    assert gpu.main([str(tmp_path), "--cpu", "--only", "one"]) == gpu.ALL_DONE
    assert gpu.main([str(tmp_path), "--cpu", "--minutes", "0"]) == gpu.MORE_TO_DO
    assert "1 jobs are waiting: run the same command again" in capsys.readouterr().out
    assert gpu.main([str(tmp_path), "--cpu"]) == gpu.ALL_DONE
    assert statuses(tmp_path) == {"kernels: one": "done", "kernels: two": "done"}
    assert gpu.main([str(tmp_path), "--cpu"]) == gpu.ALL_DONE


def test_a_job_that_hangs_is_ended_with_its_children(tmp_path, todo):
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    todo(job("hangs", ("-c", child), seconds=1.0), job("two", GOOD))
    start = time.monotonic()
    assert gpu.main([str(tmp_path), "--cpu"]) == gpu.FAILED
    assert time.monotonic() - start < 30
    assert statuses(tmp_path) == {"kernels: hangs": "too slow", "kernels: two": "done"}


def test_a_job_cut_off_by_the_end_of_the_call_is_tried_again(tmp_path, todo, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST", 0.0)
    todo(job("slow", ("-c", "import time; time.sleep(3)")))
    assert gpu.main([str(tmp_path), "--cpu", "--minutes", "0.01"]) == gpu.MORE_TO_DO
    assert statuses(tmp_path) == {"kernels: slow": "interrupted"}
    assert gpu.main([str(tmp_path), "--cpu"]) == gpu.ALL_DONE


def test_all_parts_have_jobs_with_names_of_their_own(tmp_path):
    found = gpu.jobs(tmp_path, cpu=True)
    assert {entry.part for entry in found} == set(gpu.PARTS)
    assert len({entry.key for entry in found}) == len(found)
    assert [entry.part for entry in found] == sorted((entry.part for entry in found), key=gpu.PARTS.index)
    assert {"tests/triton/test_layer_norm.py", "tests/engine/test_graphs.py"} <= set(gpu.test_files())
    assert all((gpu.REPOSITORY / path).exists() for path in gpu.test_files())


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = {"no job is named like 'nonsense'": ["--cpu", "--only", "nonsense"], "no GPU here; --cpu tries": []}
    for message, given in options.items():
        with pytest.raises(SystemExit):
            gpu.main([str(tmp_path), *given])
        assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("part, only", [("doctor", ""), ("correctness", "test_sample_mask"), ("kernels", "scatter")])
def test_a_trial_on_the_cpu(tmp_path, part, only):
    pytest.importorskip("triton", reason="needs Triton")
    assert gpu.main([str(tmp_path), "--cpu", "--part", part, "--only", only]) == gpu.ALL_DONE
    report = (tmp_path / "cpu.md").read_text()
    expected = {"doctor": "the host launches in", "correctness": " passed", "kernels": "| scatter_tokens | 16 x 49"}
    assert expected[part] in report
    assert "| step: tiny | waiting |" in report


def test_a_step_is_measured_and_profiled(tmp_path, capsys):
    rows = tmp_path / "cpu-step.jsonl"
    assert gpu_step.main(["--cpu", "--quick", "--size", "tiny-rgb", "--json", str(rows)]) == 0
    table = [json.loads(line) for line in rows.read_text().splitlines()]
    assert {row["contender"] for row in table} == {"plain", "engine"} and {row["part"] for row in table} == {
        "wall",
        "host",
    }
    assert all(row["commit"] and 0 < row["least_step_flop"] <= row["plain_step_flop"] for row in table)
    assert gpu_step.main(["--cpu", "--size", "tiny", "--profile", str(tmp_path / "profile.txt")]) == 0
    assert "Self CPU" in (tmp_path / "profile.txt").read_text()
    capsys.readouterr()


def test_sizes_on_a_gpu_and_with_one_input():
    assert gpu_step.size_named("base", "cuda").batch == 128 and gpu_step.size_named("base", "cpu").batch == 8
    size = gpu_step.size_named("base-rgb", "cuda")
    assert size.model.inputs == ("rgb",) and size.model.keep == 49 and size.batch == 128


def test_the_doctor_says_what_it_found(capsys):
    row = gpu_doctor.examine("cpu", True)
    text = gpu_doctor.text(row)
    assert row["torch_launch_s"] > 0 and "GB/s copied" in text and "layer_norm" in text
