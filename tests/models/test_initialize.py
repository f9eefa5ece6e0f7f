from __future__ import annotations

import pytest
import torch

from omnitrunk.models import MultiMAE
from tests.models.small import small_config


def deviation_of_uniform(bound):
    return bound / 3**0.5


def test_every_family_has_its_spread(seed):
    config = small_config(width=96, decoder_width=64, task_balancer="uncertainty", depth=1)
    parameters = dict(MultiMAE(config, seed).named_parameters())
    bounds = {
        "blocks.0.attn.qkv.weight": (6 / (96 + 96)) ** 0.5,
        "blocks.0.attn.proj.weight": (6 / (96 + 96)) ** 0.5,
        "blocks.0.mlp.fc1.weight": (6 / (4 * 96 + 96)) ** 0.5,
        "context.weight": (6 / (64 + 96)) ** 0.5,
        "decoders.norm_rgb.cross.kv.weight": (6 / (64 + 64)) ** 0.5,
        "decoders.norm_rgb.cross.q.weight": (6 / (64 + 64)) ** 0.5,
        "decoders.norm_rgb.out.weight": (6 / (64 + 192)) ** 0.5,
        "decoders.semseg.out.weight": (6 / (64 + 28)) ** 0.5,
        "tokenizers.rgb.weight": (6 / (96 + 192)) ** 0.5,
        "tokenizers.semseg.weight": (6 / (96 + 20)) ** 0.5,
        "tokenizers.rgb.bias": 192**-0.5,
        "tokenizers.semseg.bias": 20**-0.5,
    }
    for name, bound in bounds.items():
        values = parameters.pop(name)
        assert values.abs().max() <= bound, name
        assert values.abs().max() > 0.9 * bound, name
        tolerance = 4 * deviation_of_uniform(bound) / values.numel() ** 0.5
        assert abs(values.std() - deviation_of_uniform(bound)) < tolerance, name
        assert abs(values.mean()) < 1.2 * tolerance, name
    for name, values in parameters.items():
        last = name.rpartition(".")[2]
        if last in ("global_tokens", "task_embedding", "class_embedding"):
            assert 0.01 < values.std() < 0.03, name
        elif ".norm" in name.removeprefix("decoders.norm_rgb") or "_norm." in name:
            assert torch.equal(values, torch.full_like(values, float(last == "weight"))), name
        elif last != "weight" and not name.startswith("tokenizers."):
            assert torch.equal(values, torch.zeros_like(values)), name


def test_no_parameter_is_left_out_and_the_seed_decides(seed):
    config = small_config(task_balancer="uncertainty")
    torch.manual_seed(0)
    model, state = MultiMAE(config, seed), torch.random.get_rng_state()
    again, other = MultiMAE(config, seed), MultiMAE(config, seed + 1)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was used"
    for (name, value), same in zip(model.named_parameters(), again.parameters(), strict=True):
        assert value.isfinite().all() and torch.equal(value, same), name
    assert not torch.equal(model.context.weight, other.context.weight)


def test_an_unknown_parameter_is_noticed(seed):
    from omnitrunk.models.initialize import initialize

    model = MultiMAE(small_config(), seed)
    model.register_parameter("mystery", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(AssertionError, match="mystery"):
        initialize(model, seed)
