from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.models.layers.dropout import dropout, dropout_keys

WORD = 2**64 - 1


def splitmix(key, number):
    """Word `number` of the stream of a key, with Python's unbounded integers."""
    word = (key + (number + 1) * 0x9E3779B97F4A7C15) & WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31


@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 9), (4, 1)])
def test_every_value_is_dropped_by_its_16_bits_of_the_stream(shape, seed):
    keys, rate = dropout_keys(0.3, 2, seed=seed, positions=np.arange(shape[0]))[1], 0.3
    found = dropout(torch.ones(shape), rate, keys).flatten(1)
    for row, key in zip(found.tolist(), keys.tolist(), strict=True):
        for place, value in enumerate(row):
            lane = splitmix(key & WORD, place // 4) >> 16 * (place % 4) & 0xFFFF
            signed = lane - 2**16 if lane >= 2**15 else lane
            kept = signed + 2**15 >= round(rate * 2**16)
            assert value == pytest.approx(1 / (1 - rate) if kept else 0.0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_is_right_and_the_mean_is_kept(rate, seed):
    keys = dropout_keys(rate, 1, seed=seed, positions=np.arange(50))[0]
    found = dropout(torch.ones(50, 40, 100), rate, keys)
    assert (found == 0).double().mean().item() == pytest.approx(rate, abs=0.006)
    assert found.double().mean().item() == pytest.approx(1, abs=0.06)
    for axis in (0, 1, 2):  # no sample, point or channel is spared
        others = [other for other in (0, 1, 2) if other != axis]
        assert (found == 0).double().mean(dim=others).sub(rate).abs().max() < 0.06


def test_a_sample_drops_the_same_wherever_it_is(seed):
    positions = np.array([4, 10**12, 7])
    keys = dropout_keys(0.5, 2, seed=seed, positions=positions)
    assert keys.shape == (2, 3) and keys.unique().numel() == 6
    assert torch.equal(dropout_keys(0.5, 2, seed=seed, positions=positions[1:]), keys[:, 1:])
    assert not torch.equal(dropout_keys(0.5, 2, seed=seed + 1, positions=positions), keys)
    x = torch.rand(3, 5, 6) + 1
    assert torch.equal(dropout(x[1:], 0.5, keys[0, 1:]), dropout(x, 0.5, keys[0])[1:])
    assert not torch.equal(dropout(x, 0.5, keys[1]), dropout(x, 0.5, keys[0]))


def test_nothing_is_dropped_without_keys(seed):
    x = torch.rand(3, 4)
    assert dropout_keys(0, 2, seed=seed, positions=np.arange(3)) is None
    assert dropout(x, 0.5, None) is x


def test_the_gradient_passes_where_values_do(seed):
    x = torch.rand(2, 30, dtype=torch.float64, requires_grad=True)
    keys = dropout_keys(0.4, 1, seed=seed, positions=np.arange(2))[0]
    assert torch.autograd.gradcheck(lambda value: dropout(value, 0.4, keys), x)
