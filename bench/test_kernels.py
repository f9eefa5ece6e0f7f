"""The small cases of `omnitrunk bench kernels` under pytest-benchmark: pytest bench --benchmark-enable.

One test for each contender and pass, grouped by operation and shape, so that --benchmark-compare and --benchmark-save
work on them. Contenders do not take turns here; for ratios on a machine that is not quiet use the command.
"""

from __future__ import annotations

import pytest
import torch

from omnitrunk.bench import stopwatch
from omnitrunk.bench.cases import CASES

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One parameter for each case and contender."""
    cases = [case for operation in CASES.values() for case in operation(DEVICE, True)]
    pairs = [pytest.param(case, name, id=f"{case.operation}-{name}") for case in cases for name in case.contenders]
    metafunc.parametrize(("case", "name"), pairs)


def test_forward(benchmark: object, case: object, name: str) -> None:
    """The result of a call, as a model in training would compute it."""
    arguments, run = case.inputs(0), case.contenders[name]
    benchmark.group = f"{case.operation} {case.shape}, forward"
    benchmark(_waited, lambda: run(*arguments))


def test_backward(benchmark: object, case: object, name: str) -> None:
    """The gradients of a result; a fresh one for every round."""
    if case.backward is None:
        pytest.skip("this operation has no gradient")
    run, benchmark.group = case.contenders[name], f"{case.operation} {case.shape}, backward"

    def fresh() -> tuple[tuple, dict]:
        arguments = case.inputs(0)
        output = run(*arguments)
        return (
            lambda: stopwatch.backward(output, arguments, list(map(torch.ones_like, stopwatch.tensors(output)))),
        ), {}

    benchmark.pedantic(_waited, setup=fresh, rounds=5)


def _waited(call: object) -> None:
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
