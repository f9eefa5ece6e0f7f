"""Masks for every micro-batch, with losses weighed as if the global batch had been one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from omnitrunk.models import MultiMAEConfig
from omnitrunk.models.masking.mask_plan import MaskPlan
from omnitrunk.models.masking.plan import Plan


def plan_maker(
    model: nn.Module, *, seed: int, start: int, batch: int, parts: int, dataset: str | None = None
) -> Callable[[np.ndarray], Plan]:
    """A function from the positions of a micro-batch to its plan, for a loader that begins at position `start`.

    `dataset` is for models that know several, and names the one that is loaded.
    A global batch of `batch` samples is cut into `parts` micro-batches, over processes and accumulation, and the plain
    mean of their losses is to be the loss of the whole. Losses are means over the samples that have something masked,
    and a part may have fewer of these than another where `keep` can cover an input completely. Then each part is
    weighed by its share, which it can work out alone, because masks are a function of seed and position.
    """
    config = model.config
    check_pairs(config, batch, parts)
    if dataset is not None:
        return lambda positions: model.plan(seed, positions, dataset)
    even = not isinstance(config, MultiMAEConfig) or config.keep < min(map(config.tokens, config.inputs))
    if even or config.faithful or parts == 1:
        return lambda positions: model.plan(seed, positions)

    def make(positions: np.ndarray) -> MaskPlan:
        first = start + (int(positions[0]) - start) // batch * batch
        whole = model.plan(seed, np.arange(first, first + batch, dtype=np.int64))
        plan = model.plan(seed, positions)
        factors = {
            name: parts * _scored_samples(config, name, plan) / max(1, _scored_samples(config, name, whole))
            for name in plan.masked_weight
        }
        return replace(plan, masked_weight={name: plan.masked_weight[name] * factors[name] for name in factors})

    return make


def check_pairs(config: Any, batch: int, parts: int) -> None:
    """ValueError where training mixes pairs of samples, and micro-batches would tear some of them."""
    if getattr(config, "mixes", False) and batch % (2 * parts):
        raise ValueError(
            f"data.batch = {batch} in {parts} micro-batches, over processes and accumulation, tears pairs that mixup "
            f"and cutmix mix: use a multiple of {2 * parts}"
        )


def _scored_samples(config: MultiMAEConfig, output: str, plan: MaskPlan) -> int:
    """Samples of a plan that have at least one scored token of an output."""
    source = config.masked_like(output)
    if source is None or config.loss_on_unmasked:
        return len(plan.mask)
    offset = sum(map(config.tokens, config.inputs[: config.inputs.index(source)]))
    return int(plan.mask[:, offset : offset + config.tokens(source)].any(dim=1).sum())
