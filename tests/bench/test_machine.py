"""What a row says about the machine, and how much of it others took."""

from __future__ import annotations

import pytest
import torch

from omnitrunk.bench import machine


def test_every_row_says_where_it_comes_from():
    context = machine.context(3, machine.Neighbors())
    assert context["threads"] == 3 and context["torch"] == torch.__version__
    assert {"command", "device", "commit", "triton", "python", "cores_of_others"} <= set(context)


def test_a_command_has_no_folders_of_the_machine():
    assert machine.command(["/usr/bin/python3", "/home/me/.venv/bin/omnitrunk", "bench", "step"]) == [
        "omnitrunk",
        "bench",
        "step",
    ]
    assert machine.command(["python3", "-m", "omnitrunk.engine", "bench"]) == [
        "python",
        "-m",
        "omnitrunk.engine",
        "bench",
    ]


def test_own_work_is_not_a_neighbors(monkeypatch):
    """Of three busy seconds in ten, this process and its children had two."""
    readings = iter([(0.0, 5.0, 1.0), (10.0, 8.0, 3.0)])
    monkeypatch.setattr(machine.Neighbors, "_readings", staticmethod(lambda: next(readings)))
    cores = machine.Neighbors().cores()
    assert cores == pytest.approx(0.1)
    assert machine.disturbance({"cores_of_others": cores}) == "other processes took 0.10 cores meanwhile"


def test_rates_are_positive():
    assert all(rate > 1e6 for rate in machine.matmul_rates(0.05, sizes=(64,)).values())
    assert machine.memory_bandwidth(0.01, megabytes=1) > 1e6
