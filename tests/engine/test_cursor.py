from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from omnitrunk.engine.data.cursor import Cursor, epoch_order
from omnitrunk.kernels.philox import uniform_bits


def draw(cursor, steps):
    return np.concatenate([cursor.samples_at(cursor.take()) for _ in range(steps)])


def test_every_epoch_visits_every_sample_once_and_batches_cross_its_end(seed):
    rng = np.random.default_rng(seed)
    size, batch = int(rng.integers(5, 200)), int(rng.integers(1, 90))
    samples = draw(Cursor(size, seed, batch), math.lcm(size, batch) // batch)
    for epoch in samples.reshape(-1, size):
        assert sorted(epoch) == list(range(size))


def test_consecutive_epochs_have_different_orders(seed):
    first, second = draw(Cursor(40, seed, 20), 4).reshape(2, 40)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_order_does_not_depend_on_the_number_of_ranks(seed, world):
    steps, batch = 9, 12
    alone = draw(Cursor(31, seed, batch), steps).reshape(steps, batch)
    ranks = [draw(Cursor(31, seed, batch, rank, world), steps).reshape(steps, -1) for rank in range(world)]
    assert np.array_equal(np.concatenate(ranks, axis=1), alone)


def test_one_integer_resumes_the_order_on_another_number_of_ranks(seed):
    whole = draw(Cursor(23, seed, 8), 10)
    first = Cursor(23, seed, 8)
    begun = draw(first, 4)
    rest = [draw(Cursor(23, seed, 8, rank, 2, first.samples_seen), 6).reshape(6, 4) for rank in range(2)]
    assert np.array_equal(np.concatenate([begun, np.concatenate(rest, axis=1).ravel()]), whole)


def test_data_sets_that_take_turns_draw_each_order_once(seed, monkeypatch):
    drawn = []

    def draw_and_note(seed, purpose, epochs, count):
        drawn.extend(epochs)
        return uniform_bits(seed, purpose, epochs, count)

    monkeypatch.setattr("omnitrunk.engine.data.cursor.uniform_bits", draw_and_note)
    cursors = [Cursor(size, seed, 10) for size in (25, 35, 45)]
    for _ in range(4):
        for one in cursors:
            one.samples_at(one.take())
    assert sorted(drawn) == [0, 0, 0, 1, 1]  # 40 samples are two epochs of all but the last


def test_epochs_and_seeds_have_orders_of_their_own(seed):
    orders = [epoch_order(50, s, epoch).tolist() for s in (seed, seed + 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_all_orders_are_equally_likely(seed):
    draws = 4800
    seen = Counter(tuple(epoch_order(4, seed, epoch).tolist()) for epoch in range(draws))
    expected = draws / math.factorial(4)
    chi_square = sum((seen[order] - expected) ** 2 / expected for order in seen)
    assert len(seen) == 24
    assert chi_square < 70  # 23 degrees of freedom: exceeded once in a million runs


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused():
    with pytest.raises(ValueError, match=r"batch of 10 does not divide over 4 ranks: set data\.batch"):
        Cursor(100, 0, 10, 0, 4)
