from __future__ import annotations

import pytest
import torch

from omnitrunk.models import MaskedAutoencoder, MultiMAE
from tests.models.small import small_config
from tests.models.small_autoencoders import small_mae, small_videomae


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


def assert_uniform(values, bound, name):
    assert 0.9 * bound < values.abs().max() <= bound, name
    assert abs(values.std() - deviation_of_uniform(bound)) < 5 * deviation_of_uniform(bound) / values.numel() ** 0.5, (
        name
    )


def test_mae_counts_stacked_matrices_as_one(seed):
    parameters = dict(MaskedAutoencoder(small_mae(width=96, decoder_width=64), seed).named_parameters())
    bounds = {
        "blocks.1.attn.qkv.weight": (6 / (3 * 96 + 96)) ** 0.5,
        "decoder.blocks.0.mlp.fc2.weight": (6 / (64 + 4 * 64)) ** 0.5,
        "decoder.embed.weight": (6 / (64 + 96)) ** 0.5,
        "tokenizer.weight": (6 / (96 + 192)) ** 0.5,
        "tokenizer.bias": 192**-0.5,
    }
    for name, bound in bounds.items():
        assert_uniform(parameters[name], bound, name)
    for name in ("class_token", "decoder.mask_token"):
        assert 0.01 < parameters[name].std() < 0.03, name
    assert (parameters["norm.weight"] == 1).all() and (parameters["decoder.norm.bias"] == 0).all()
    assert (parameters["decoder.out.bias"] == 0).all() and (parameters["blocks.0.attn.qkv.bias"] == 0).all()


def test_videomae_leaves_its_tokenizer_at_the_default_and_cuts_the_mask_token(seed):
    config = small_videomae(width=96, decoder_width=512)
    parameters = dict(MaskedAutoencoder(config, seed).named_parameters())
    assert_uniform(parameters["tokenizer.weight"], 384**-0.5, "tokenizer.weight")
    assert parameters["tokenizer.bias"].abs().max() <= 384**-0.5
    assert_uniform(parameters["blocks.0.attn.qkv.weight"], (6 / (4 * 96)) ** 0.5, "qkv")
    token = parameters["decoder.mask_token"]
    assert 0.018 < token.abs().max() <= 0.02
    assert token.std().item() == pytest.approx(0.02 * 0.5396, rel=0.1)  # of a normal cut at one deviation
    for name, values in parameters.items():
        if name.endswith("bias") and name != "tokenizer.bias":
            assert (values == 0).all(), name
