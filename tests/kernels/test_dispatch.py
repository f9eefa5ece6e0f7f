from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels import dispatch, explain, gather_tokens, linear, use
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation


@pytest.fixture
def operation(monkeypatch):
    """An operation of its own: "fast" where it is present, else "plain", which refuses empty tensors."""
    monkeypatch.setattr(dispatch, "OPERATIONS", dict(dispatch.OPERATIONS))
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    operation = Operation("example", lambda x: "reference")
    operation.backend("fast", devices=("cuda",), why="fast")(lambda x: "fast")
    operation.backend("broken", devices=("cpu",), why="-", missing=lambda: "libexample is missing; install it")(
        lambda x: "broken"
    )
    operation.backend("plain", devices=("cpu",), why="plain", refuses=lambda x: None if x.numel() else "empty")(
        lambda x: "plain"
    )
    return operation


def test_auto_takes_the_first_backend_that_is_present_and_accepts(operation):
    assert operation.run("auto", torch.ones(1)) == "plain"
    assert operation.run("auto", torch.ones(0)) == "reference"


def test_the_choice_explains_itself(operation):
    choice = operation.explain(torch.ones(0))
    assert (choice.backend, choice.reason) == ("reference", "the definition")
    assert dict(choice.passed_over) == {
        "fast": "runs on cuda, not on cpu",
        "broken": "libexample is missing; install it",
        "plain": "empty",
    }
    assert operation.choice_on("cuda").backend == "fast"
    assert operation.explain(torch.ones(1), backend="reference").reason == "named by the caller"


def test_a_named_backend_is_taken_or_refused_with_its_reason(operation):
    assert operation.run("plain", torch.ones(1)) == "plain"
    with pytest.raises(ValueError, match="libexample is missing; install it"):
        operation.run("broken", torch.ones(1))
    with pytest.raises(ValueError, match="runs on cuda, not on cpu"):
        operation.run("fast", torch.ones(1))
    with pytest.raises(ValueError, match="cannot serve this call: empty"):
        operation.run("plain", torch.ones(0))


def test_an_unknown_name_is_refused_and_the_known_ones_listed(operation):
    with pytest.raises(ValueError, match=r"no backend 'fats'.*auto, fast, broken, plain, reference"):
        operation.run("fats", torch.ones(1))
    with pytest.raises(ValueError, match="no operation has a backend 'fats'"), use("fats"):
        pass


def test_use_reaches_everything_inside_and_nothing_after(operation):
    with use("reference"):
        assert operation.run("auto", torch.ones(1)) == "reference"
        assert operation.run("plain", torch.ones(1)) == "plain", "a backend named in the call wins"
        with use("plain"):
            assert operation.run("auto", torch.ones(1)) == "plain"
            assert operation.explain(torch.ones(1)).reason == 'inside use("plain")'
        assert operation.run("auto", torch.ones(1)) == "reference"
    assert operation.run("auto", torch.ones(1)) == "plain"


def test_use_is_undone_by_an_error(operation):
    with pytest.raises(KeyError), use("reference"):
        raise KeyError
    assert operation.run("auto", torch.ones(1)) == "plain"


def test_use_leaves_operations_without_that_backend_alone(operation):
    with use("onednn"):
        assert operation.run("auto", torch.ones(1)) == "plain"


def test_the_environment_chooses_for_a_whole_run(operation, monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT, "reference")
    assert operation.run("auto", torch.ones(1)) == "reference"
    assert operation.explain(torch.ones(1)).reason == "OMNITRUNK_BACKEND=reference"
    with use("plain"):
        assert operation.run("auto", torch.ones(1)) == "plain", "use() wins over the environment"
    monkeypatch.setenv(dispatch.ENVIRONMENT, "fats")
    with pytest.raises(ValueError, match="fats"):
        operation.run("auto", torch.ones(1))


def test_every_operation_has_a_choice_on_both_devices():
    for device in ("cpu", "cuda"):
        choices = {choice.operation: choice for choice in explain(device)}
        assert {"linear", "attention", "adamw_", "sample_mask", "patch_project", "masked_patch_loss"} <= set(choices)
        assert all(choice.reason for choice in choices.values())


def test_use_changes_what_real_operations_run(monkeypatch):
    def fail(*_args):
        raise AssertionError("not the definition")

    monkeypatch.setattr(torch.autograd.Function, "apply", fail)
    with use("reference"):
        assert gather_tokens(torch.ones(2, 3), torch.tensor([1])).shape == (1, 3)
        assert linear(torch.ones(2, 3), torch.ones(4, 3)).shape == (2, 4)


def test_costs_add_up_and_the_slowest_wall_is_the_floor():
    total = Cost(bytes=10, flop=20) + Cost(bytes=5, flop=1, exps=3)
    assert (total.bytes, total.flop, total.exps) == (15, 21, 3)
    assert total.seconds(bytes_per_s=15, flop_per_s=7) == 3
    assert total.seconds(bytes_per_s=15, flop_per_s=7, exps_per_s=0.5) == 6
