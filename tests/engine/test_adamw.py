from __future__ import annotations

import random

import pytest
import torch

from omnitrunk.engine.adamw import AdamW
from omnitrunk.engine.optimizer import OptimizerConfig
from tests.engine.small_weights import SHAPES, Weights, step_of_torch


def moved(seed, steps=30):
    """The names that have a gradient, step by step: one of them always, the last from the middle of the run on."""
    chance = random.Random(seed)
    for step in range(steps):
        late = step >= steps // 2 and chance.random() < 0.5
        yield {"early"} | ({"late"} if chance.random() < 0.4 else set()) | ({"head"} if late else set())


@pytest.mark.parametrize("clip", [0.0, 1.5])
def test_updates_are_those_of_torch_for_parameters_that_rest_or_begin_late(clip, seed):
    ours, theirs = Weights(seed), Weights(seed).double()
    optimizer = AdamW(ours.groups(), OptimizerConfig(clip=clip, ema_decay=0.9))
    expected = torch.optim.AdamW([group | {"lr": 0.0} for group in theirs.groups()], betas=(0.9, 0.95), eps=1e-8)
    averages = {name: value.detach().clone() for name, value in theirs.named_parameters()}
    for step, names in enumerate(moved(seed)):
        ours.give_gradients(seed + step, names)
        wanted = step_of_torch(expected, theirs, ours, lr=0.1 / (step + 1), clip=clip)
        norm, skipped = optimizer.update(0.1 / (step + 1))
        assert not skipped and norm.item() == pytest.approx(wanted, rel=1e-5)
        for name, parameter in theirs.named_parameters():
            averages[name].lerp_(parameter.detach(), 0.1)
    for place, (name, parameter) in enumerate(theirs.named_parameters()):
        torch.testing.assert_close(getattr(ours, name).double(), parameter, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(optimizer.ema[place].double(), averages[name], rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_not_finite_moves_no_cohort(seed):
    model = Weights(seed)
    optimizer = AdamW(model.groups(), OptimizerConfig(ema_decay=0.5, clip=1.0))
    for names in ({"early"}, {"early", "late"}, set(SHAPES)):
        model.give_gradients(seed, names)
        optimizer.update(0.1)

    def everything():
        return [value.clone() for value in (*model.parameters(), *optimizer.ema, *optimizer.state_dict().values())]

    before = everything()
    for poison in (torch.nan, torch.inf):
        model.give_gradients(seed + 1)
        model.late.grad[2] = poison
        norm, skipped = optimizer.update(0.1)
        assert skipped and not norm.isfinite()
        assert all(torch.equal(value, old) for value, old in zip(everything(), before, strict=True))


def test_a_state_taken_over_goes_on_bit_by_bit(seed):
    """Also where two parameters have moved equally often, but not together."""
    first, second = Weights(seed), Weights(seed)
    ours, theirs = (AdamW(weights.groups(), OptimizerConfig(clip=1.0)) for weights in (first, second))
    for step, names in enumerate(({"late"}, {"head"}, {"late"}, {"head"})):
        first.give_gradients(seed + step, names)
        ours.update(0.1)
    second.load_state_dict(first.state_dict())
    theirs.load_state_dict({name: value.clone() for name, value in ours.state_dict().items()}, None)
    for step, names in enumerate(({"late", "head"}, set(SHAPES), {"late"})):
        for weights, optimizer in ((first, ours), (second, theirs)):
            weights.give_gradients(seed + 10 + step, names)
            optimizer.update(0.1)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
