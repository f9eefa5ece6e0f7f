from __future__ import annotations

import numpy as np
import pytest

from omnitrunk.models.masking.policies import random_tokens, random_tokens_in_noise_order, tube_tokens


@pytest.mark.parametrize("policy", [random_tokens, random_tokens_in_noise_order])
def test_a_row_depends_on_seed_and_position_alone(policy, seed):
    rows = policy(20, 7, seed=seed, positions=np.arange(10, 16))
    assert rows.shape == (6, 7) and rows.dtype == np.int64
    assert np.array_equal(policy(20, 7, seed=seed, positions=np.array([13, 11])), rows[[3, 1]])
    assert not np.array_equal(policy(20, 7, seed=seed + 1, positions=np.arange(10, 16)), rows)
    assert all(len(set(row)) == 7 and set(row) <= set(range(20)) for row in rows.tolist())


@pytest.mark.parametrize("policy", [random_tokens, random_tokens_in_noise_order])
def test_every_token_is_visible_equally_often(policy, seed):
    rows = policy(12, 3, seed=seed, positions=np.arange(6000))
    counts = np.bincount(rows.ravel(), minlength=12)
    deviation = (6000 * 0.25 * 0.75) ** 0.5
    assert np.abs(counts - 1500).max() < 5 * deviation


def test_order_is_ascending_or_that_of_the_noise(seed):
    ascending = random_tokens(12, 5, seed=seed, positions=np.arange(200))
    assert np.array_equal(ascending, np.sort(ascending))
    first = random_tokens_in_noise_order(12, 5, seed=seed, positions=np.arange(6000))[:, 0]
    assert np.abs(np.bincount(first, minlength=12) - 500).max() < 5 * (6000 / 12 * 11 / 12) ** 0.5


def test_tubes_repeat_a_pattern_in_every_slice():
    cells = np.array([[0, 3], [1, 2]])
    assert tube_tokens(cells, 3, 4).tolist() == [[0, 3, 4, 7, 8, 11], [1, 2, 5, 6, 9, 10]]
