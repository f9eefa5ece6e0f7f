"""Every CUDA kernel compiles for every architecture, within its budget of registers and shared memory."""

from __future__ import annotations

import re

import pytest

from tests.cuda import resources

pytestmark = pytest.mark.skipif(
    resources.nvcc() is None, reason="needs nvcc: install the CUDA toolkit, on PATH or in CUDA_HOME"
)
GROWTH = 1.1
"""How much more than its budget a kernel may take, since releases of nvcc differ."""


@pytest.fixture(scope="module")
def measured():
    return resources.measure()


@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_within_budget(measured, architecture):
    budgets, kernels = resources.budgets()[architecture], measured[architecture]
    assert kernels.keys() == budgets.keys(), "kernels came or went: python -m tests.cuda write"
    for name, used in kernels.items():
        assert used["stack"] == used["spills"] == 0, f"{name} keeps values of its threads in memory: {used}"
        for resource in ("registers", "shared"):
            most = budgets[name][resource] * GROWTH
            assert used[resource] <= most, f"{name} takes {used[resource]} {resource}, its budget is {most:.0f}"


@pytest.mark.parametrize("source", resources.sources(), ids=lambda source: source.stem)
def test_rounds_every_operation(source):
    code = resources.ptx(source)
    # Without .rn the last step of compilation may still fuse.
    fused = re.findall(r"\b(?:fma|mad)\S*\.f32\b|\b(?:add|sub|mul)\.f32\b", code)
    assert "mul.rn.f32" in code and not fused, f"results would differ from those of a CPU: {set(fused)}"


def test_sampling_reduces_in_hardware_and_meets_once_per_pick():
    code = resources.ptx(resources.SOURCES / "farthest_point_sample.cu")
    for entry in code.split(".entry")[1:]:
        rounds = entry.count("redux.sync.max") // 2
        assert entry.count("redux.sync.min") == 2 * rounds and entry.count("bar.sync") == rounds >= 1


def test_chamfer_reads_whole_points():
    assert "ld.shared.v4.f32" in resources.ptx(resources.SOURCES / "chamfer.cu")
