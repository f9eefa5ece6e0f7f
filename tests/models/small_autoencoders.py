"""Small autoencoders and random batches for the tests."""

from __future__ import annotations

import numpy as np
import torch

from omnitrunk.models import MAEConfig, MaskedAutoencoder, VideoMAEConfig
from tests.models.small import lively


def small_mae(**changes):
    sizes = {
        "image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 3, "decoder_width": 16,
        "decoder_depth": 2, "decoder_heads": 2,
    }  # fmt: skip
    return MAEConfig(**{**sizes, **changes})


def small_videomae(**changes):
    sizes = {
        "frames": 6, "image_size": (16, 24), "patch_size": 8, "width": 24, "depth": 2, "heads": 3, "decoder_width": 16,
        "decoder_depth": 2, "decoder_heads": 2, "mask_ratio": 0.6,
    }  # fmt: skip
    return VideoMAEConfig(**{**sizes, **changes})


def bytes_batch(config, batch, seed):
    """Random pixels of the one input."""
    shape = config.image_shape if config.system == "mae" else config.clip_shape
    pixels = np.random.default_rng(seed).integers(0, 256, (batch, *shape, 3), dtype=np.uint8)
    return {config.inputs[0]: torch.from_numpy(pixels)}


def double_autoencoder(config, seed):
    return lively(MaskedAutoencoder(config, seed), seed).double()


def assert_same_loss_and_gradients(model, loss, expected):
    """Loss, and the gradient of every parameter."""
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = torch.autograd.grad(loss, parameters)
    direct = torch.autograd.grad(expected, parameters)
    for name, gradient, reference in zip(names, ours, direct, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)
