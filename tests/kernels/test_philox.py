from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnitrunk.kernels import philox

# The vectors that the authors publish with their code (Random123, kat_vectors).
KNOWN_ANSWERS = [
    ([0] * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]

words = st.integers(0, 2**32 - 1)
seeds = st.integers(-(2**63), 2**63 - 1)
positions = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5).map(lambda values: np.array(values, dtype=np.int64))


def scalar_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """The definition in the paper, one block in Python integers: R_k(L, R) with two multipliers and a Weyl key."""
    left, right = [counter[1], counter[3]], [counter[0], counter[2]]
    for r in range(10):
        round_key = [(key[i] + r * (0x9E3779B9, 0xBB67AE85)[i]) % 2**32 for i in range(2)]
        products = [right[0] * 0xD2511F53, right[1] * 0xCD9E8D57]
        right = [products[1] // 2**32 ^ left[0] ^ round_key[0], products[0] // 2**32 ^ left[1] ^ round_key[1]]
        left = [products[1] % 2**32, products[0] % 2**32]
    return right[0], left[0], right[1], left[1]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    got = philox.philox4x32(np.array(counter, dtype=np.uint32), key)
    assert " ".join(f"{word:08x}" for word in got) == answer


@given(st.tuples(words, words, words, words), st.tuples(words, words))
def test_blocks_follow_the_definition(counter, key):
    got = philox.philox4x32(np.array(counter, dtype=np.uint32), key)
    assert tuple(got.tolist()) == scalar_philox(counter, key)


@settings(max_examples=50)
@given(seeds, positions, st.integers(0, 21))
def test_bits_are_blocks_of_index_and_position(seed, positions, count):
    bits = philox.uniform_bits(seed, "crop", positions, count)
    assert bits.shape == (len(positions), count) and bits.dtype == np.uint32
    key = philox.key(seed, "crop")
    for row, position in zip(bits, positions.tolist(), strict=True):
        low, high = position % 2**32, (position % 2**64) >> 32
        expected = [word for block in range(6) for word in scalar_philox((block, low, high, 0), key)]
        assert row.tolist() == expected[:count]


def test_streams_differ_in_seed_purpose_and_position(seed):
    streams = [(seed, "a", 0), (seed + 1, "a", 0), (seed, "b", 0), (seed, 1, 0), (seed, "1", 0), (seed, "a", 1)]
    bits = {tuple(philox.uniform_bits(s, p, np.array([at]), 4)[0]) for s, p, at in streams}
    draws = {philox.generator(*stream).random() for stream in streams}
    assert len(bits) == len(draws) == len(streams)


def test_streams_are_the_same_everywhere():
    """Pinned values: whoever changes the hash or the layout changes every mask, crop and order of every old run."""
    assert philox.key(7, "mask.task") == (2317525225, 1817815780)
    assert philox.uniform_bits(-1, 3, np.array([2**40]), 5)[0].tolist() == [
        3526473970,
        1777782834,
        69796315,
        3670635437,
        29639984,
    ]
    assert philox.generator(7, "mask.counts", 11).integers(2**63) == 4753411564108376335


def test_uniform_uses_53_bits_of_two_words(seed):
    positions = np.array([0, 5, 2**50])
    bits = philox.uniform_bits(seed, "x", positions, 14)
    expected = [
        [((int(row[2 * i]) >> 5) * 2**26 + (int(row[2 * i + 1]) >> 6)) / 2**53 for i in range(7)] for row in bits
    ]
    assert philox.uniform(seed, "x", positions, 7).tolist() == expected


def test_uniform_is_uniform(seed):
    """Sixteen equal bins over positions and over counts: chi-square far below its one-in-a-million value, 58."""
    for shape in [(4096, 4), (4, 4096)]:
        values = philox.uniform(seed, "x", np.arange(shape[0]) + seed, shape[1])
        assert values.min() >= 0 and values.max() < 1
        counts = np.histogram(values, bins=16, range=(0, 1))[0]
        expected = values.size / 16
        assert ((counts - expected) ** 2 / expected).sum() < 58


def test_generator_repeats_itself(seed):
    first, second = (philox.generator(seed, "counts", 3).dirichlet([1.0, 1.0, 1.0], size=4) for _ in range(2))
    assert np.array_equal(first, second)
