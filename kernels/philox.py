"""Keyed randomness: every random number is a function of (seed, purpose, position), never of a generator's history.

The generator is Philox4x32-10 of Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011):
a block cipher over a counter, so any number can be computed without the ones before it. Word i of a position is word
i % 4 of the block with counter (i // 4, position low, position high, 0); the key is a hash of seed and purpose.
csrc/philox.h computes the same bits.
"""

from __future__ import annotations

import hashlib

import numpy as np

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW_WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def key(seed: int, purpose: int | str) -> tuple[int, int]:
    """Return the two 32-bit key words of a stream: a BLAKE2b hash of seed and purpose, the same on every machine."""
    low, high = np.frombuffer(_digest(seed, purpose, size=8), dtype="<u4")
    return int(low), int(high)


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return the random words of blocks: counter uint32 (..., 4) -> uint32 (..., 4)."""
    # Words live in 64-bit integers, where the 32 x 32 bit products fit.
    a, b, c, d = (counter[..., word].astype(np.uint64) for word in range(4))
    low, high = key
    for _ in range(ROUNDS):
        first, second = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b = (second >> HALF) ^ b ^ np.uint64(low), second & LOW_WORD
        c, d = (first >> HALF) ^ d ^ np.uint64(high), first & LOW_WORD
        low, high = (low + WEYL[0]) & 0xFFFFFFFF, (high + WEYL[1]) & 0xFFFFFFFF
    return np.stack([a, b, c, d], axis=-1).astype(np.uint32)


def uniform_bits(seed: int, purpose: int | str, positions: np.ndarray, count: int) -> np.ndarray:
    """Return `count` random words for every position: positions int64 (B,) -> uint32 (B, count).

    A row depends on its own position only, and a smaller `count` gives the beginning of a larger one.
    """
    blocks = -(-count // 4)
    lanes = np.asarray(positions, dtype=np.int64).view(np.uint64)[:, None]
    counter = np.zeros((len(lanes), blocks, 4), dtype=np.uint32)
    counter[..., 0] = np.arange(blocks, dtype=np.uint32)
    counter[..., 1] = lanes & LOW_WORD
    counter[..., 2] = lanes >> HALF
    return philox4x32(counter, key(seed, purpose)).reshape(len(lanes), 4 * blocks)[:, :count]


def uniform(seed: int, purpose: int | str, positions: np.ndarray, count: int) -> np.ndarray:
    """Return `count` numbers in [0, 1) for every position: positions int64 (B,) -> float64 (B, count).

    Each takes two words of `uniform_bits`, of which it uses the 53 bits that a float64 holds.
    """
    words = uniform_bits(seed, purpose, positions, 2 * count).astype(np.uint64)
    upper, lower = words[:, 0::2] >> np.uint64(5), words[:, 1::2] >> np.uint64(6)
    return ((upper << np.uint64(26)) | lower) * 2.0**-53


def generator(seed: int, purpose: int | str, position: int) -> np.random.Generator:
    """Return a numpy generator of its own for one position, for distributions beyond the uniform (Dirichlet, normal).

    Its stream is the same on every platform; numpy may change a distribution's algorithm from one version to the next.
    """
    words = np.frombuffer(_digest(seed, purpose, position, size=16), dtype="<u8")
    return np.random.Generator(np.random.Philox(key=words.astype(np.uint64)))


def _digest(*parts: int | str, size: int) -> bytes:
    # repr() keeps 1 and "1" apart and, unlike hash(), does not change from process to process.
    return hashlib.blake2b(repr(parts).encode(), digest_size=size).digest()
