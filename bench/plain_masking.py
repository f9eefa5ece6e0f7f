"""The mask sampler of the plain peer: Dirichlet split over tasks, then argsort of noise, twice.

Bachmann et al. 2022, section 3.3, in the form of the released sampler: see `select`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Dirichlet


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which tokens are visible: all tokens of all tasks stand side by side, N in all, and K of them are kept.

    `ids_keep` int64 (B, K); `ids_restore` int64 (B, N), the inverse of the shuffle whose head is `ids_keep`;
    `masks` task -> int64 (B, n), 0 visible, 1 masked.
    """

    ids_keep: Tensor
    ids_restore: Tensor
    masks: dict[str, Tensor]


def select(counts: Tensor, noise: Mapping[str, Tensor], shuffle_noise: Tensor, keep: int) -> Selection:
    """The selection that follows from given noise.

    `counts` int64 (B, T) is the wish per task, `noise` task -> (B, n) picks that many positions of each task, and
    `shuffle_noise` (B, N) orders the tokens: wished ones first, each group at random. The first `keep` stay,
    so surplus wishes are dropped and shortages filled at random from everything still masked.
    """
    wished = [
        (values.argsort(dim=1) >= count[:, None]).long()
        for values, count in zip(noise.values(), counts.unbind(1), strict=True)
    ]
    ids_shuffle = (torch.cat(wished, dim=1) + shuffle_noise).argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    mask = torch.ones_like(ids_restore)
    mask[:, :keep] = 0
    mask = mask.gather(1, ids_restore)
    sizes = [values.shape[1] for values in noise.values()]
    return Selection(
        ids_keep=ids_shuffle[:, :keep],
        ids_restore=ids_restore,
        masks=dict(zip(noise, mask.split(sizes, dim=1), strict=True)),
    )


def sample(batch: int, sizes: Mapping[str, int], keep: int, alphas: Mapping[str, float]) -> Selection:
    """Draws `keep` tokens out of `sizes` task -> n, from PyTorch's global generator like any script."""
    proportions = Dirichlet(torch.tensor([alphas[task] for task in sizes])).sample((batch,))
    counts = (proportions * keep).round().long()
    noise = {task: torch.rand(batch, size) for task, size in sizes.items()}
    return select(counts, noise, torch.rand(batch, sum(sizes.values())), keep)
