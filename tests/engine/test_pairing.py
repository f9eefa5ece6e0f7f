from __future__ import annotations

import copy

import pytest
import torch

from omnitrunk.engine import pairing
from omnitrunk.engine.adamw import AdamW
from omnitrunk.engine.optimizer import OptimizerConfig
from omnitrunk.models.layers.trunk import Trunk
from omnitrunk.models.pathway import PathwayConfig, join, merge

# Keys have no bias: its gradient is 0 but for rounding, which Adam would blow up to full steps.
SIZES = {"width": 32, "depth": 2, "heads": 4, "mlp_ratio": 2.0, "bias": "qv"}


def joined_trunk(seed, config):
    generator = torch.Generator().manual_seed(seed)
    trunks = [Trunk(**SIZES) for _ in range(3)]
    for parameter in (parameter for trunk in trunks for parameter in trunk.parameters()):
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    join(trunks[0], [trunk.state_dict() for trunk in trunks[1:]], config)
    return trunks[0]


def groups(model):
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    wide = [name for name in named if named[name].dim() > 1]
    rest = [name for name in named if name not in wide]
    return [
        {"params": [named[name] for name in names], "names": names, "weight_decay": decay, "lr_scale": scale}
        for names, decay, scale in ((wide, 0.05, 1.0), (rest, 0.0, 0.5))
    ]


def steps(model, optimizer, batches):
    for x, dy in batches:
        (model(x) * dy).sum().backward()
        optimizer.update(1e-2)
        optimizer.clear_gradients()


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_the_paired_update_is_that_of_explicit_gradients(seed, clip, trained):
    config = OptimizerConfig(lr=1e-2, clip=clip, ema_decay=0.9)
    paired = joined_trunk(seed, PathwayConfig(scale=0.1, train_auxiliaries=trained))
    plain = copy.deepcopy(paired)
    batches = [(torch.randn(2, 5, 32), torch.randn(2, 5, 32)) for _ in range(6)]
    steps(plain, AdamW(groups(plain), config), batches)
    optimizer = AdamW(groups(paired), config, pairing.pair(paired, "fp32"))
    steps(paired, optimizer, batches)
    for (name, ours), (_, theirs) in zip(paired.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4, msg=name)


def test_the_effective_weight_follows_the_update(seed):
    model = joined_trunk(seed, PathwayConfig(scale=0.1))
    optimizer = AdamW(groups(model), OptimizerConfig(lr=1e-2), pairing.pair(model, "fp32"))
    x = torch.randn(2, 5, 32)
    steps(model, optimizer, [(x, torch.randn(2, 5, 32)) for _ in range(3)])
    merged = Trunk(**SIZES)
    merged.load_state_dict(merge(model.state_dict()))
    torch.testing.assert_close(model(x), merged(x), rtol=1e-5, atol=1e-5)


def test_no_gradient_is_kept_for_what_is_derived(seed):
    model = joined_trunk(seed, PathwayConfig(scale=0.1))
    pairing.pair(model, "fp32")
    model(torch.randn(2, 5, 32)).sum().backward()
    derived = set(pairing.derived_names(model))
    assert len(derived) == 2 * 4 * 2 * 2
    assert derived == {name for name, parameter in model.named_parameters() if parameter.grad is None}


def test_where_only_scales_are_trained_autograd_serves_them(seed):
    model = joined_trunk(seed, PathwayConfig(train_auxiliaries=False))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".scales." in name)
    assert pairing.pair(model, "fp32") == []
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = AdamW([group for group in groups(model) if group["params"]], OptimizerConfig(lr=1e-2))
    steps(model, optimizer, [(torch.randn(2, 5, 32), torch.randn(2, 5, 32))] * 2)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if ".scales." in name}
