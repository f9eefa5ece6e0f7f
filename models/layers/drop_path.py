"""Drop path, or stochastic depth (Huang et al. 2016): a sample skips a residual branch, keyed by (seed, position)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from omnitrunk.kernels.philox import uniform


def sample_drop_scale(
    rate: float, depth: int, *, seed: int, positions: np.ndarray, purpose: str = "drop_path"
) -> Tensor | None:
    """Factors float32 (2 * depth, B) of the branches: 0 where dropped, else 1 / keep probability; None at rate 0.

    The probability rises linearly from 0 in the first block to `rate` in the last.
    """
    if rate == 0 or depth == 0:
        return None
    rates = np.linspace(0, rate, depth).repeat(2)[:, None]
    draws = uniform(seed, purpose, np.asarray(positions, dtype=np.int64), 2 * depth).T
    return torch.from_numpy(((draws >= rates) / (1 - rates)).astype(np.float32))
