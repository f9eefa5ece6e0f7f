"""Which tokens are visible: the plan of a batch, made on the host, from which the device only gathers.

Bachmann et al. 2022, section 3.3: each sample's K visible tokens are split over the inputs by a Dirichlet draw, chosen
at random inside each input, then topped up or thinned out to exactly K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from omnitrunk.kernels.philox import uniform
from omnitrunk.kernels.sample_mask import sample_mask
from omnitrunk.models.layers.drop_path import sample_drop_scale
from omnitrunk.models.masking.dirichlet import dirichlet
from omnitrunk.models.masking.plan import Plan

if TYPE_CHECKING:
    from omnitrunk.models.multimae_config import MultiMAEConfig


@dataclass(frozen=True, kw_only=True)
class MaskPlan(Plan):
    """All indices of one batch: B samples, K visible of N tokens, G global tokens, T inputs, n_t tokens of input t.

    A "flat row" of input t is b * n_t + i. The trunk's buffer has B * (K + G) rows, global tokens last in each sample.
    """

    ids_keep: Tensor
    """int64 (B, K): the visible tokens, counted over all inputs side by side."""
    mask: Tensor
    """bool (B, N): True where a token is masked."""
    visible: dict[str, Tensor]
    """input -> int64 (M_t,): flat rows of its visible tokens."""
    slots: dict[str, Tensor]
    """input -> int64 (M_t,): where each of these stands in the trunk's buffer."""
    order: Tensor
    """int64 (B * (K + G),): the buffer's rows, drawn from [rows of input 1, rows of input 2, ..., global tokens]."""
    membership: Tensor
    """float32 (B * (K + G), T): one-hot input of each row of the buffer, zero for global tokens."""
    masked: dict[str, Tensor]
    """output -> int64 (Q,): flat rows that its loss scores."""
    masked_weight: dict[str, Tensor]
    """output -> float32 (Q,): weights that make the sum over rows the mean over samples of their means."""
    drop_scale: Tensor | None = None
    """float32 (2 * depth, B): factor of every residual branch, or None without drop path."""


def sample_plan(config: MultiMAEConfig, seed: int, positions: np.ndarray) -> MaskPlan:
    """The plan of the samples at `positions` int64 (B,); each sample's part depends on (seed, its position) alone."""
    positions = np.ascontiguousarray(positions, dtype=np.int64)
    sizes = tuple(config.tokens(name) for name in config.inputs)
    counts = torch.from_numpy(visible_counts(config, seed, positions))
    ids_keep = sample_mask(counts, sizes, config.keep, seed=seed, positions=torch.from_numpy(positions))[0].numpy()
    if config.faithful:
        shuffle = uniform(seed, "token_order", positions, config.keep).argsort(axis=1)
        ids_keep = np.take_along_axis(ids_keep, shuffle, axis=1)
    drop_scale = sample_drop_scale(config.drop_path, config.depth, seed=seed, positions=positions)
    return make_plan(config, ids_keep, drop_scale=drop_scale)


def visible_counts(config: MultiMAEConfig, seed: int, positions: np.ndarray) -> np.ndarray:
    """Wished number of visible tokens for each sample and input, int32 (B, T): Dirichlet shares of K, rounded.

    Rounding is to even on float32, each input for itself, so a row may miss K by one or ask for more than there are.
    """
    alphas = np.broadcast_to(config.concentrations, (len(positions), len(config.inputs)))
    chosen = None
    if config.sample_tasks_uniformly:
        chosen = _task_subsets(seed, positions, len(config.inputs))
        if config.faithful:  # the release's excluded inputs keep a sliver, and rarely a token
            alphas, chosen = alphas * chosen + 1e-5, None
    shares = dirichlet(alphas, seed=seed, positions=positions, chosen=chosen)
    return np.rint(shares.astype(np.float32) * np.float32(config.keep)).astype(np.int32)


def make_plan(config: MultiMAEConfig, ids_keep: np.ndarray | Tensor, drop_scale: Tensor | None = None) -> MaskPlan:
    """The plan that follows from visible tokens `ids_keep` int64 (B, K), in any order; K need not be `config.keep`."""
    ids = np.asarray(ids_keep)
    mask = _mask_of(ids, config.total_tokens)
    visible, slots = _visible_rows(config, ids)
    masked = _scored(config, mask)
    length = ids.shape[1] + config.global_tokens
    every_slot = np.arange(len(ids) * length).reshape(len(ids), length)
    order = np.empty(every_slot.size, dtype=np.int64)
    order[np.concatenate([*slots.values(), every_slot[:, ids.shape[1] :].ravel()])] = every_slot.ravel()
    membership = np.zeros((every_slot.size, len(slots)), dtype=np.float32)
    for column, rows in enumerate(slots.values()):
        membership[rows, column] = 1
    return MaskPlan(
        ids_keep=torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)),
        mask=torch.from_numpy(mask),
        visible=_tensors(visible),
        slots=_tensors(slots),
        order=torch.from_numpy(order),
        membership=torch.from_numpy(membership),
        masked={output: rows for output, (rows, _) in masked.items()},
        masked_weight={output: weight for output, (_, weight) in masked.items()},
        drop_scale=drop_scale,
    )


def _mask_of(ids: np.ndarray, total: int) -> np.ndarray:
    if ids.ndim != 2 or (ids.size and not 0 <= ids.min() <= ids.max() < total):
        raise ValueError(f"ids_keep must be (B, K) with tokens in 0..{total - 1}; its shape is {ids.shape}")
    mask = np.ones((len(ids), total), dtype=bool)
    np.put_along_axis(mask, ids, False, axis=1)
    if np.count_nonzero(mask) != mask.size - ids.size:
        raise ValueError("ids_keep names a token twice in one sample; keep each token once")
    return mask


def _visible_rows(config: MultiMAEConfig, ids: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    visible, slots, offset = {}, {}, 0
    for name in config.inputs:
        count = config.tokens(name)
        places = np.flatnonzero((ids >= offset) & (ids < offset + count))
        sample = places // ids.shape[1]
        visible[name] = ids.ravel()[places] - offset + sample * count
        slots[name] = places + sample * config.global_tokens
        offset += count
    return visible, slots


def _scored(config: MultiMAEConfig, mask: np.ndarray) -> dict[str, tuple[Tensor, Tensor]]:
    """Flat rows that each loss scores, and their weights; outputs with one mask share one pair of tensors."""
    pairs: dict[tuple[str | None, int], tuple[Tensor, Tensor]] = {}
    scored = {}
    for output in config.outputs:
        source, count = config.masked_like(output), config.tokens(output)
        if (source, count) not in pairs:
            pairs[source, count] = _rows_and_weights(config, _scored_mask(config, source, count, mask))
        scored[output] = pairs[source, count]
    return scored


def _scored_mask(config: MultiMAEConfig, source: str | None, count: int, mask: np.ndarray) -> np.ndarray:
    """Bool (B, n): the masked tokens of the source; all, where there is none or the visible ones are scored too."""
    if source is None or config.loss_on_unmasked:
        return np.ones((len(mask), count), dtype=bool)
    offset = sum(config.tokens(name) for name in config.inputs[: config.inputs.index(source)])
    return mask[:, offset : offset + count]


def _rows_and_weights(config: MultiMAEConfig, scored: np.ndarray) -> tuple[Tensor, Tensor]:
    counts = scored.sum(axis=1)
    per_sample = 1 / (np.maximum(counts, 1) * max(np.count_nonzero(counts), 1))
    if config.faithful and counts.any() and not counts.all():
        # The release divides 0 by 0 here: its loss skips these samples, but their gradient is NaN.
        per_sample[counts == 0] = np.nan
        scored = scored | (counts == 0)[:, None]
    rows = np.flatnonzero(scored)
    return torch.from_numpy(rows), torch.from_numpy(per_sample[rows // scored.shape[1]].astype(np.float32))


def _task_subsets(seed: int, positions: np.ndarray, count: int) -> np.ndarray:
    """Bool (B, T): for each sample one of the 2^T - 1 non-empty subsets, the last input as the lowest bit."""
    number = 1 + (uniform(seed, "task_subset", positions, 1) * (2**count - 1)).astype(np.int64)
    return (number >> np.arange(count)[::-1]) % 2 == 1


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
