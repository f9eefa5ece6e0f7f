"""What fine-tuning does to the samples of a batch: which tokens they have, what is changed in them and in the trunk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnitrunk.models.augmentation.erasing import Erasing, draw_erasing
from omnitrunk.models.augmentation.mixing import Mixing, draw_mixing
from omnitrunk.models.augmentation.spans import Spans, draw_spans
from omnitrunk.models.classifier_config import ClassifierConfig
from omnitrunk.models.layers.drop_path import sample_drop_scale
from omnitrunk.models.masking.policies import time_frequency_tokens
from omnitrunk.models.masking.token_plan import TokenPlan, make_token_plan


@dataclass(frozen=True, kw_only=True)
class ClassifierPlan(TokenPlan):
    """Tokens and branches as in pre-training, and what there is of augmentation; None where there is none of a kind."""

    mixing: Mixing | None
    erasing: Erasing | None
    spans: Spans | None


def draw_plan(config: ClassifierConfig, seed: int, positions: np.ndarray) -> ClassifierPlan:
    """The plan of the samples at `positions` int64 (B,), made on the host and keyed by (seed, position)."""
    keyed = {"seed": seed, "positions": positions}
    depth, shape = config.encoder_config.depth, config.image_shape
    tokens = make_token_plan(
        _visible_tokens(config, seed, positions),
        config.total_tokens,
        drop_scale=sample_drop_scale(config.drop_path, depth, **keyed),
    )
    return ClassifierPlan(
        **vars(tokens),
        mixing=draw_mixing(**keyed, mixup=config.mixup, cutmix=config.cutmix, mixed=config.mixed, shape=shape),
        erasing=draw_erasing(**keyed, rate=config.erase, shape=shape),
        spans=draw_spans(**keyed, most=(config.mask_frames, config.mask_mels), shape=config.sound_shape),
    )


def _visible_tokens(config: ClassifierConfig, seed: int, positions: np.ndarray) -> np.ndarray:
    """int64 (B, V), ascending."""
    if config.drops_tokens:
        return time_frequency_tokens(config.encoder_config.grid, config.kept_lines, seed=seed, positions=positions)
    return np.tile(np.arange(config.total_tokens), (len(positions), 1))
