"""Small models and random batches for the tests."""

from __future__ import annotations

import numpy as np
import torch

from omnitrunk.models import MultiMAE, MultiMAEConfig


def small_config(**changes):
    """Three inputs of 4 x 4 patches, everything else as small as it can be while no two sizes agree by accident."""
    sizes = {
        "image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 3, "decoder_width": 16, "decoder_depth": 1,
        "decoder_heads": 2, "keep": 12, "semseg_classes": 7, "class_embedding_width": 5,
    }  # fmt: skip
    return MultiMAEConfig(**{**sizes, **changes})


def random_batch(config, batch, seed):
    rng = np.random.default_rng(seed)
    height, width = config.image_shape
    return {
        "rgb": torch.from_numpy(rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)),
        "depth": torch.from_numpy(rng.random((batch, height, width, 1), dtype=np.float32)),
        "semseg": torch.from_numpy(
            rng.integers(0, config.semseg_classes, (batch, height // 4, width // 4), dtype=np.uint8)
        ),
    }


def random_ids(config, batch, seed, keep=None):
    """Visible tokens (B, K) in random order, from anywhere."""
    rng = np.random.default_rng(seed)
    return np.stack(
        [rng.permutation(config.total_tokens)[: config.keep if keep is None else keep] for _ in range(batch)]
    )


def lively(model, seed):
    """Add noise to all parameters, so that none is 0 or 1 and every term of the model counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def double_model(config, seed):
    return lively(MultiMAE(config, seed), seed).double()


def double_batch(batch):
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
