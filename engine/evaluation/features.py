"""One vector for each sample: of a model, or the input itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from omnitrunk.engine.data import Batch
from omnitrunk.engine.evaluation.config import EvaluateConfig, check_stage
from omnitrunk.engine.evaluation.samples import Features, mean_over_views
from omnitrunk.engine.step import autocast
from omnitrunk.models import MaskedAutoencoder


def model_features(
    model: nn.Module, modalities: Sequence[str], device: torch.device, precision: str, config: EvaluateConfig
) -> Features:
    """Features of a model from these modalities, all their patches visible; `pool` and `stage` as configured."""
    check_stage(model.config, config.stage)
    encoded = _encoding(model, config)

    def compute(batch: Batch) -> Tensor:
        with torch.no_grad(), autocast(device, precision):
            return mean_over_views(encoded(batch.tensors, tuple(modalities)).float().flatten(1), batch)

    return compute


def _encoding(model: nn.Module, config: EvaluateConfig) -> Callable[..., Tensor]:
    if stages := len(getattr(model.config, "depths", ())):
        if config.pool == "tokens":
            return partial(model.features, stage=range(stages)[config.stage])
        if config.stage >= 0:
            return lambda tensors, tasks: model.features(tensors, tasks, stage=config.stage).mean(dim=(1, 2, 3))
    if config.pool == "mean":
        return model.features
    return partial(model.encode, normed=False) if isinstance(model, MaskedAutoencoder) else model.encode


def raw_features(modalities: Sequence[str], *, depth_center: float = 0.5) -> Features:
    """The input itself, pixels around the middle of their range: otherwise all pictures point in one direction.

    `depth_center` is that middle for depth: 0 where it is normalized.
    """

    def compute(batch: Batch) -> Tensor:
        found = torch.cat([_centered(batch.tensors[name], depth_center).flatten(1) for name in modalities], dim=1)
        return mean_over_views(found, batch)

    return compute


def _centered(values: Tensor, depth_center: float) -> Tensor:
    if values.dtype == torch.uint8:
        return values.float() / 255 - (0.5 if values.dim() > 3 else 0.0)
    return values.float() - (depth_center if values.dim() > 3 else 0.0)
