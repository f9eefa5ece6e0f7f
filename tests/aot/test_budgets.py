from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="needs Triton")

from tests.aot import budget, record


@pytest.mark.parametrize("operation", record.operations())
def test_shipped_kernels_compile_within_their_budget(operation):
    measured = budget.measure(operation)
    assert measured, f"{operation} has launch settings but ships no kernel"
    excesses = budget.excesses(measured, budget.read(operation))
    assert not excesses, "\n".join(excesses)


def test_a_budget_that_is_passed_is_named():
    row = {
        "registers": 64,
        "stack": 0,
        "spills": 0,
        "shared": 0,
        "instructions": 100,
        "wgmma": 2,
        "mma": 0,
        "widest_access": 16,
    }
    allowed = {"sm_90 | case: kernel": row}
    assert budget.excesses(allowed, allowed) == []
    for change in ({"registers": 80}, {"stack": 8}, {"spills": 2}, {"wgmma": 0}, {"widest_access": 4}, {"shared": 16}):
        assert budget.excesses({"sm_90 | case: kernel": row | change}, allowed)
