from __future__ import annotations

import dataclasses

import pytest
import torch

from omnitrunk.engine.adamw import AdamW
from omnitrunk.engine.idle import without_effect
from omnitrunk.engine.optimizer import OptimizerConfig
from omnitrunk.engine.sgd import SGD
from omnitrunk.engine.train import train
from tests.engine.small_weights import Weights, step_of_torch
from tests.engine.test_stages import MODELS, same_when_interrupted, stage
from tests.engine.tiny import log_of, tiny


def settings(**changes):
    return OptimizerConfig(kind="sgd", **changes)


@pytest.mark.parametrize("clip", [0.0, 1.5])
def test_updates_are_those_of_torch(clip, seed):
    ours, theirs = Weights(seed), Weights(seed).double()
    optimizer = SGD(ours.groups(), settings(momentum=0.8, clip=clip))
    expected = torch.optim.SGD([group | {"lr": 0.0} for group in theirs.groups()], momentum=0.8)
    for step in range(5):
        ours.give_gradients(seed + step)
        wanted = step_of_torch(expected, theirs, ours, lr=0.1 / (step + 1), clip=clip)
        norm, skipped = optimizer.update(0.1 / (step + 1))
        assert not skipped and norm.item() == pytest.approx(wanted, rel=1e-5)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(getattr(ours, name).double(), parameter, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_not_finite_changes_nothing(seed):
    model = Weights(seed)
    optimizer = SGD(model.groups(), settings(ema_decay=0.5, clip=1.0))
    model.give_gradients(seed)
    optimizer.update(0.1)
    before = [value.clone() for value in (*model.parameters(), *optimizer.momentum, *optimizer.ema)]
    for poison in (torch.nan, torch.inf):
        model.give_gradients(seed + 1)
        model.late.grad[2] = poison
        norm, skipped = optimizer.update(0.1)
        assert skipped and not norm.isfinite()
        for value, old in zip((*model.parameters(), *optimizer.momentum, *optimizer.ema), before, strict=True):
            assert torch.equal(value, old)


def test_parameters_without_a_gradient_rest(seed):
    model = Weights(seed)
    optimizer = SGD(model.groups(), settings(ema_decay=0.5))
    model.give_gradients(seed)
    optimizer.update(0.1)
    before = [model.early.clone(), optimizer.momentum[0].clone(), model.late.clone()]
    average = optimizer.ema[0].clone()
    model.give_gradients(seed + 1, names=("late", "head"))
    optimizer.update(0.1)
    resting = (model.early, optimizer.momentum[0])
    assert all(torch.equal(value, old) for value, old in zip(resting, before, strict=False))
    assert not torch.equal(model.late, before[2])
    torch.testing.assert_close(optimizer.ema[0], average.lerp(model.early.detach(), 0.5))  # the average goes on


def test_weights_are_averaged(seed):
    model, average = Weights(seed), Weights(seed)
    optimizer = SGD(model.groups(), settings(ema_decay=0.9))
    for step in range(3):
        model.give_gradients(seed + step)
        optimizer.update(0.1)
        with torch.no_grad():
            for name, value in average.named_parameters():
                value.lerp_(getattr(model, name), 0.1)
    current = model.early.clone()
    with optimizer.averaged_weights():
        torch.testing.assert_close(model.early, average.early)
    assert torch.equal(model.early, current)
    torch.testing.assert_close(optimizer.averaged(model)["head"], average.head.detach())


def test_the_state_is_taken_over_by_name(seed):
    model, other = Weights(seed), Weights(seed)
    first, second = (SGD(weights.groups(), settings()) for weights in (model, other))
    model.give_gradients(seed)
    first.update(0.1)
    other.load_state_dict(model.state_dict())
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()}, None)
    for weights, optimizer in ((model, first), (other, second)):
        weights.give_gradients(seed + 1)
        optimizer.update(0.1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"has no momentum.early there: set optimizer.kind back"):
        first.load_state_dict(AdamW(model.groups(), OptimizerConfig()).state_dict(), None)


def test_a_run_is_resumed_exactly(tmp_path, monkeypatch):
    parts = {"optimizer": {"kind": "sgd", "lr": 0.05, "ema_decay": 0.9, "clip": 1.0}}
    same_when_interrupted(monkeypatch, *(stage(tmp_path / name, MODELS["mae"], **parts) for name in ("whole", "cut")))


def test_the_kind_decides_what_a_run_does(tmp_path):
    losses = []
    for changes in ({"kind": "sgd"}, {"kind": "sgd", "momentum": 0.0}, {"kind": "adamw"}):
        config = tiny(tmp_path / str(len(losses)), steps=6, optimizer={"lr": 1e-2, "warmup_steps": 0} | changes)
        assert train(config) == 0
        losses.append(log_of(config)[-1]["grad_norm"])
    assert len(set(losses)) == 3


def test_settings_of_the_other_kind_have_no_effect(tmp_path):
    def idle(**changes):
        return [line.split()[0] for line in without_effect(tiny(tmp_path, optimizer=changes)) if "optimizer." in line]

    assert idle(kind="sgd", momentum=0.5) == [] == idle(eps=1e-6, betas=[0.5, 0.9])
    assert idle(momentum=0.5) == ["optimizer.momentum"]
    assert set(idle(kind="sgd", eps=1e-6, betas=[0.5, 0.9])) == {"optimizer.eps", "optimizer.betas"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"kind": "adam"}, "optimizer.kind = 'adam' must be adamw or sgd"), ({"momentum": 1.0}, "momentum 1.0 and")],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OptimizerConfig(), **changes)
