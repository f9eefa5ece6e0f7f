from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.models.masking.token_plan import all_tokens
from tests.models.slow_pointmae import slow_groups, slow_tokens
from tests.models.small_autoencoders import double_autoencoder
from tests.models.small_pointmae import clouds, small_pointmae


@pytest.mark.parametrize("changes", [{}, {"faithful": True}, {"mask": "block"}], ids=["default", "faithful", "block"])
def test_groups_are_neighbors_of_spread_centers(changes, seed):
    config = small_pointmae(**changes)
    batch = clouds(config, 3, seed)
    sample = double_autoencoder(config, seed).prepare(batch)
    centers, groups = slow_groups(config, batch["points"])
    torch.testing.assert_close(sample["centers"], centers)
    torch.testing.assert_close(sample["groups"], groups)
    assert not sample["groups"][:, :, 0].any()


def test_tokens_of_some_groups_are_those_of_all(seed):
    config = small_pointmae()
    model, batch = double_autoencoder(config, seed), clouds(config, 3, seed)
    weights, sample = dict(model.named_parameters()), model.prepare(batch)
    index = torch.from_numpy(np.random.default_rng(seed).permuted(np.tile(np.arange(10), (3, 1)), axis=1)[:, :4])
    expected = slow_tokens(weights, sample["groups"])
    torch.testing.assert_close(model.tokenizer(sample, index), expected.take_along_dim(index[..., None], 1))
    everything = all_tokens(3, 10, torch.device("cpu"))
    torch.testing.assert_close(model.tokenizer(sample, everything), expected)
    running = {name: value.clone() for name, value in model.named_buffers()}
    expected = slow_tokens(weights, sample["groups"], running).take_along_dim(index[..., None], 1)
    torch.testing.assert_close(model.eval().tokenizer(sample, index), expected)


def test_mistakes_are_one_line_with_the_fix(seed):
    config = small_pointmae()
    model = double_autoencoder(config, seed)
    with pytest.raises(ValueError, match="the batch has no 'points'"):
        model.prepare({"rgb": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"points are \(50, 3\); the model takes \(60, 3\): set data.points"):
        model.prepare({"points": torch.zeros(2, 50, 3)})
