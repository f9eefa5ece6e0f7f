from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from omnitrunk.engine import doctor, doctor_peers
from omnitrunk.engine.doctor_columns import aligned
from omnitrunk.kernels import dispatch, peers
from omnitrunk.kernels.attention import OPERATION as ATTENTION
from omnitrunk.kernels.dispatch import Operation


@pytest.fixture
def operation(monkeypatch):
    """The only operation: "own" and "library" need a GPU, "lost" is not installed, "cpu" never runs on one."""
    monkeypatch.setattr(dispatch, "OPERATIONS", {})
    operation = Operation("example", lambda x: x)
    for name, devices, against in (
        ("lost", ("cuda",), "lost is not installed: pip install lost"),
        ("own", ("cuda",), peers.NO_GPU),
        ("cpu", ("cpu",), None),
        ("library", ("cuda",), peers.NO_GPU),
    ):
        operation.backend(name, devices=devices, why=f"why {name}", missing=lambda text=against: text)(lambda x: x)
    return operation


def test_without_a_gpu_the_doctor_says_what_one_would_run(operation, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = doctor.report()
    line = "own  why own, else library, else reference (not lost: lost is not installed: pip install lost)"
    assert f"  example  {line}\n" in text
    assert "unknown from here: the GPU's age" in text


def test_with_a_gpu_the_doctor_says_what_it_runs(operation, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor, "libraries", list)
    operation.backends["own"] = dataclasses.replace(operation.backends["own"], missing=lambda: None)
    text = doctor.report()
    assert "serves it and why; reference is the plain PyTorch\n  example  own  why own (not lost: lost is not" in text
    assert "operations on cuda" in text and "runs on cuda, not on cpu" not in text
    assert "if there were a GPU" not in text


def test_every_operation_is_explained_for_a_gpu():
    lines = list(doctor_peers.prospects())
    assert [line.split()[0] for line in lines[2:]] == list(dispatch.OPERATIONS)
    attention = next(line for line in lines if line.startswith("  attention"))
    for name, backend in ATTENTION.backends.items():
        assert (f" {name}" in attention) == ("cuda" in backend.devices), name


def test_every_library_is_listed_with_its_state(monkeypatch):
    states = {"flash-attn-4": None, "xformers": "xformers is not installed: pip install omnitrunk[xformers]"}
    monkeypatch.setattr(peers, "absent", lambda package: states.get(package.distribution))
    monkeypatch.setattr(peers, "missing", lambda package: "needs something" if package.newest else None)
    monkeypatch.setattr(peers, "version", lambda distribution: "1.2" if distribution == "flash-attn-4" else None)
    lines = dict(re.split("  +", line.strip(), maxsplit=1) for line in list(doctor_peers.libraries())[1:])
    assert list(lines) == [package.name for package in peers.KNOWN]
    assert lines["flash_attn 4"].startswith("flash-attn-4 1.2, not used here: needs something; serves attention")
    assert lines["flash_attn 4"].endswith("on GPUs of compute capability 9.x to 11.x")
    assert lines["flash_attn 3"].endswith("on GPUs of compute capability 9.x")
    assert lines["xformers"].startswith("xformers is not installed: pip install omnitrunk[xformers]; serves attention")
    assert lines["apex (adam)"].startswith("apex of unknown version; serves adamw_")
    assert lines["varlen"].endswith("8.0 or newer")


def test_columns_are_as_wide_as_their_longest_text():
    rows = [("a", "long text", "b"), ("longer", "c", "d e")]
    assert list(aligned(rows)) == ["  a       long text  b", "  longer  c          d e"]


def test_every_library_serves_an_operation():
    served = {name for operation in dispatch.OPERATIONS.values() for name in operation.backends}
    assert {package.name.split()[0] for package in peers.KNOWN} <= served
