"""What training does to the samples of one batch of an Omnivore: drawn on the host, keyed by (seed, position)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omnitrunk.kernels.philox import uniform
from omnitrunk.models.augmentation.erasing import Erasing, draw_erasing
from omnitrunk.models.augmentation.mixing import Mixing, draw_mixing
from omnitrunk.models.layers.drop_path import sample_drop_scale
from omnitrunk.models.layers.dropout import dropout_keys
from omnitrunk.models.masking.plan import Plan
from omnitrunk.models.omnivore_config import OmnivoreConfig


@dataclass(frozen=True, kw_only=True)
class OmnivorePlan(Plan):
    """The data set of a batch of B samples, and what is changed in them; None where there is nothing of a kind."""

    dataset: str
    """Its name, which says which head is trained."""
    drop_scale: Tensor | None = None
    """float32 (2 * blocks, B): factor of every residual branch."""
    dropout_keys: Tensor | None = None
    """int64 (B,): keys of the dropout before the head."""
    mixing: Mixing | None = None
    erasing: Erasing | None = None
    blank: Tensor | None = None
    """bool (B,): whose picture counts as blank, so that only depth is left."""


def draw_plan(config: OmnivoreConfig, dataset: str, seed: int, positions: np.ndarray) -> OmnivorePlan:
    """The plan of the samples of a data set at `positions` int64 (B,)."""
    keyed, shape = {"seed": seed, "positions": positions}, config.image_shape
    keys = dropout_keys(config.head_dropout.get(dataset, 0), 1, **keyed)
    blank = None
    if config.rgb_drop and dataset in config.rgbd_sets:
        blank = torch.from_numpy(uniform(seed, "rgb drop", positions, 1)[:, 0] < config.rgb_drop)
    return OmnivorePlan(
        dataset=dataset,
        drop_scale=sample_drop_scale(config.drop_path, config.blocks, **keyed),
        dropout_keys=None if keys is None else keys[0],
        mixing=draw_mixing(**keyed, mixup=config.mixup, cutmix=config.cutmix, mixed=config.mixed, shape=shape),
        erasing=draw_erasing(**keyed, rate=config.erase.get(dataset, 0), shape=shape),
        blank=blank,
    )
