"""Dropout (Srivastava et al. 2014) without a generator: what is dropped is a function of a sample's key.

The keys are made on the host, of (seed, position), and are part of the plan. The device spreads each over as many words
as the sample needs, word i being SplitMix64 (Steele, Lea, Flood 2014) of key + (i + 1) * GOLDEN. So a resumed run, any
number of processes or micro-batches and a recorded CUDA graph drop the same values.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from omnitrunk.kernels.philox import uniform_bits

GOLDEN, FIRST, SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Constants of SplitMix64, as int64 holds them."""
LANES = 4
"""Decisions made of one word, of 16 bits each."""


def dropout_keys(rate: float, places: int, *, seed: int, positions: np.ndarray) -> Tensor | None:
    """Keys int64 (places, B) of the dropouts of a model, for the samples at `positions` int64 (B,); None at rate 0."""
    if rate == 0:
        return None
    words = uniform_bits(seed, "dropout", positions, 2 * places)
    return torch.from_numpy(np.ascontiguousarray(words).view(np.int64).T.copy())


def dropout(x: Tensor, rate: float, keys: Tensor | None) -> Tensor:
    """X (B, ...) with values dropped by keys int64 (B,), the others scaled by 1 / (1 - rate); as it is without keys.

    `rate` is kept to within 2^-17.
    """
    if keys is None:
        return x
    values = x[0].numel()
    lanes = _words(keys, -(-values // LANES)).view(torch.int16)[:, :values].view(x.shape)
    kept = lanes >= round(rate * 2**16) - 2**15
    return x * (kept.to(x.dtype) / (1 - rate))


def _words(keys: Tensor, count: int) -> Tensor:
    """int64 (B, count) of keys (B,)."""
    word = keys[:, None] + GOLDEN * torch.arange(1, count + 1, device=keys.device)
    word = (word ^ _shifted(word, 30)) * FIRST
    word = (word ^ _shifted(word, 27)) * SECOND
    return word ^ _shifted(word, 31)


def _shifted(word: Tensor, bits: int) -> Tensor:
    """The shift of unsigned numbers, which brings in zeros from the left."""
    return (word >> bits) & (2 ** (64 - bits) - 1)
