"""The model sizes that are measured, and a batch of random pixels for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omnitrunk.bench.plain_multimae import STRIDES, PlainConfig


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model, and the number of samples in one step."""

    model: PlainConfig
    batch: int


SIZES = {
    "tiny": Size(
        model=PlainConfig(
            image_size=(32, 32), patch=8, classes=5, class_width=8, width=32, depth=2, heads=2,
            decoder_width=16, decoder_depth=1, decoder_heads=2, keep=8,
        ),
        batch=2,
    ),
    "demo": Size(
        model=PlainConfig(
            image_size=(64, 64), patch=8, classes=12, class_width=32, width=128, depth=4, heads=4,
            decoder_width=64, decoder_depth=1, decoder_heads=4, keep=32,
        ),
        batch=64,
    ),
    "base": Size(model=PlainConfig(), batch=8),
    "large": Size(model=PlainConfig(width=1024, depth=24, heads=16), batch=4),
}  # fmt: skip
"""Base and large are the published pre-training recipes; demo learns the embedded world in minutes on two cores."""


def random_batch(size: Size, seed: int) -> dict[str, Tensor]:
    """What the data loader would give: rgb uint8 (B, H, W, 3), depth float32 (B, H, W, 1), semseg uint8 (B, h, w)."""
    rng = np.random.default_rng(seed)
    height, width = size.model.image_size
    stride = STRIDES["semseg"]
    batch = {
        "rgb": rng.integers(0, 256, (size.batch, height, width, 3), dtype=np.uint8),
        "depth": rng.random((size.batch, height, width, 1), dtype=np.float32),
        "semseg": rng.integers(0, size.model.classes, (size.batch, height // stride, width // stride), dtype=np.uint8),
    }
    return {task: torch.from_numpy(batch[task]) for task in size.model.inputs}
