from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omnitrunk.kernels.dispatch import use
from omnitrunk.models import MaskedAutoencoder
from omnitrunk.models.decoders.local import LocalAttention, OffsetBias
from omnitrunk.models.initialize import initialize
from tests.models.slow_audiomae import slow_local_attention
from tests.models.small import lively
from tests.models.small_audiomae import small_audiomae, spectrograms


class Alone(torch.nn.Module):
    """A module that can be initialized by the rules of AudioMAE."""

    def __init__(self, part):
        super().__init__()
        self.part, self.config = part, small_audiomae()


def attention(grid, shift, seed, heads=2, width=8):
    whole = Alone(LocalAttention(width, heads, grid, shift))
    initialize(whole, seed)
    return lively(whole, seed).double().part


def tokens(count, seed, batch=2, width=8):
    return torch.randn(batch, count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("grid", [(8, 4), (12, 8), (4, 8), (8, 2), (3, 4)])
def test_tokens_attend_to_their_window(grid, shift, seed):
    layer, x = attention(grid, shift, seed), tokens(grid[0] * grid[1], seed)
    weights = dict(layer.named_parameters())
    expected = torch.stack([slow_local_attention(weights, "", sample, grid, 2, shift) for sample in x])
    found = layer(x)
    torch.testing.assert_close(found, expected @ layer.proj.weight.T + layer.proj.bias, rtol=1e-9, atol=1e-9)


def test_lengths_do_not_matter_and_low_temperatures_are_held(seed):
    layer, x = attention((8, 4), 2, seed), tokens(32, seed)
    expected = layer(x)
    with torch.no_grad():
        layer.qkv.weight[:16] *= 3
        layer.qkv.bias[:16] *= 3
        torch.testing.assert_close(layer(x), expected)
        layer.temperature.fill_(0.01)
        expected = layer(x)
        layer.temperature.fill_(-5.0)
        torch.testing.assert_close(layer(x), expected)
        layer.temperature.fill_(0.02)
        assert (layer(x) - expected).abs().max() > 1e-6


def test_a_query_of_zeros_is_finite_and_so_are_its_gradients(seed):
    layer = attention((4, 4), 0, seed)
    with torch.no_grad():
        layer.qkv.weight[:16] = 0
        layer.qkv.bias[:16] = 0
    layer(tokens(16, seed)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_biases_stay_in_float32_under_autocast(seed):
    whole = Alone(OffsetBias(3))
    initialize(whole, seed)
    expected = whole.part()
    assert expected.shape == (49, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(whole.part(), expected)


def test_wanted_tokens_are_those_of_all(seed):
    config = small_audiomae(decoder_depth=2)
    model = lively(MaskedAutoencoder(config, seed), seed).double()
    batch, plan = spectrograms(config, 3, seed), model.plan(seed, np.arange(3))
    sample = model.prepare(batch)
    encoded = model.encode_tokens(sample, plan.keep, norm=model.norm)
    everywhere = model.decoder.everywhere(encoded, sample, plan)
    assert everywhere.shape == (3, 96, 16)
    torch.testing.assert_close(model.decoder(encoded, sample, plan), everywhere[plan.mask])
    wanted = torch.tensor([[5, 1], [0, 95], [7, 7]])
    found = model.decoder(encoded, sample, plan, wanted)
    torch.testing.assert_close(found, everywhere.take_along_dim(wanted[..., None], 1).flatten(0, 1))


@pytest.mark.parametrize("changes", [{}, {"decoder_depth": 1, "mlp_ratio": 3.0}, {"decoder_depth": 0}])
def test_flops_are_those_that_torch_counts(changes, seed):
    config = small_audiomae(**changes)
    model, batch = MaskedAutoencoder(config, seed).double(), spectrograms(config, 3, seed)
    plan, counter = model.plan(seed, np.arange(3)), FlopCounterMode(display=False)
    with use("reference"), counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(batch, plan)
    assert counter.get_total_flops() == pytest.approx(model.flops(plan) * 3, rel=1e-12)
