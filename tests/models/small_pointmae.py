"""A small Point-MAE and random clouds for the tests."""

from __future__ import annotations

import torch

from omnitrunk.models.pointmae import PointMAEConfig


def small_pointmae(**changes):
    sizes = {
        "points": 60, "groups": 10, "group_size": 7, "width": 24, "depth": 2, "heads": 3, "decoder_width": 24,
        "decoder_depth": 2, "decoder_heads": 2, "drop_path": 0.0, "decoder_drop_path": 0.0,
    }  # fmt: skip
    return PointMAEConfig(**{**sizes, **changes})


def clouds(config, batch, seed):
    """Random points, some of them near the origin."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(batch, config.points, 3, dtype=torch.float64, generator=generator)
    points[:, 1::5] *= 0.01
    return {"points": points}
