"""Pictures, clips and spectrograms cut into their patches, and put together again.

B batch, n patches of a sample, row by row with the last axis fastest, C channels; a patch has one length per axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from torch import Tensor


def to_patches(samples: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, *shape, C) -> (B, n, values of a patch, C)."""
    axes = len(patch)
    for axis, length in enumerate(patch):
        samples = samples.unflatten(1 + 2 * axis, (-1, length))
    grid_first = samples.permute(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    return grid_first.flatten(1 + axes, 2 * axes).flatten(1, axes)


def from_patches(patches: np.ndarray, grid: Sequence[int], patch: Sequence[int]) -> np.ndarray:
    """(B, n, values of a patch, C) -> (B, *shape, C), the inverse for n = all patches of a `grid`."""
    axes, (batch, _, values, channels) = len(patch), patches.shape
    assert values == prod(patch), (patches.shape, patch)
    split = patches.reshape(batch, *grid, *patch, channels)
    order = [axis for pair in zip(range(1, axes + 1), range(axes + 1, 2 * axes + 1), strict=True) for axis in pair]
    shape = [count * length for count, length in zip(grid, patch, strict=True)]
    return split.transpose(0, *order, 2 * axes + 1).reshape(batch, *shape, channels)
