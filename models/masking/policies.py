"""Which tokens stay visible, by the policies of the systems; every row is a function of (seed, its position) alone.

B batch, N tokens, V visible tokens. All policies return int64 (B, V).
"""

from __future__ import annotations

import numpy as np
import torch

from omnitrunk.kernels.philox import uniform
from omnitrunk.kernels.sample_mask import sample_mask


def random_tokens(tokens: int, keep: int, *, seed: int, positions: np.ndarray) -> np.ndarray:
    """`keep` of N `tokens`, each subset equally likely, ascending (He et al. 2022, section 3)."""
    positions = np.ascontiguousarray(positions, dtype=np.int64)
    counts = torch.full((len(positions), 1), keep, dtype=torch.int32)
    return sample_mask(counts, (tokens,), keep, seed=seed, positions=torch.from_numpy(positions))[0].numpy()


def random_tokens_in_noise_order(tokens: int, keep: int, *, seed: int, positions: np.ndarray) -> np.ndarray:
    """`keep` of N `tokens` in the order of uniform noise, as the released MAE and AudioMAE leave them."""
    return uniform(seed, "mask.noise", positions, tokens).argsort(axis=1, kind="stable")[:, :keep]


def time_frequency_tokens(
    grid: tuple[int, int], keep: tuple[int, int], *, seed: int, positions: np.ndarray
) -> np.ndarray:
    """Tokens whose time and whose band both stay, of a `grid` of times by bands (Huang et al. 2022, section 3).

    keep[0] of the times and keep[1] of the bands are drawn apart. Tokens are numbered time by time, V is the product of
    the two numbers kept, and the result is ascending.
    """
    times, bands = (
        np.sort(uniform(seed, f"mask.{axis}", positions, count).argsort(axis=1, kind="stable")[:, :kept], axis=1)
        for axis, count, kept in zip(("time", "frequency"), grid, keep, strict=True)
    )
    return (grid[1] * times[:, :, None] + bands[:, None, :]).reshape(len(positions), -1)


def last_tokens(tokens: int, keep: int, *, positions: np.ndarray) -> np.ndarray:
    """The last `keep` of N `tokens`: a block mask, where tokens are numbered by distance from its center."""
    return np.tile(np.arange(tokens - keep, tokens), (len(positions), 1))


def tube_tokens(cells: np.ndarray, slices: int, cells_per_slice: int) -> np.ndarray:
    """The visible cells (B, k) of one slice, kept through all `slices` of a clip (Tong et al. 2022, section 3.2).

    Token s * cells_per_slice + c is cell c of slice s; the result (B, slices * k) is ascending where the cells are.
    """
    starts = cells_per_slice * np.arange(slices, dtype=np.int64)
    return (starts[:, None] + cells[:, None, :]).reshape(len(cells), -1)
