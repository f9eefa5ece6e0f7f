"""A small AudioMAE and random sounds for the tests."""

from __future__ import annotations

import torch

from omnitrunk.models.audiomae import AudioMAEConfig


def small_audiomae(**changes):
    sizes = {
        "frames": 48, "mels": 32, "patch_size": 4, "width": 24, "depth": 2, "heads": 3, "decoder_width": 16,
        "decoder_depth": 3, "decoder_heads": 2, "mean": -6.0, "std": 3.0,
    }  # fmt: skip
    return AudioMAEConfig(**{**sizes, **changes})


def spectrograms(config, batch, seed):
    """Standardized spectrograms (B, T, F), some of it at rest as after the end of a recording."""
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(batch, config.frames, config.mels, dtype=torch.float64, generator=generator)
    audio[-1, config.frames // 2 :] = 0.4
    return {"audio": audio}


def waveforms(batch, samples, seed):
    """Noise with a constant on top, and how long it lasts; what follows is no zero, so that reading it shows."""
    generator = torch.Generator().manual_seed(seed)
    audio = 0.3 * torch.randn(batch, samples, dtype=torch.float64, generator=generator) + 0.1
    return {"audio": audio, "audio_length": torch.randint(samples // 2, samples, (batch,), generator=generator)}
