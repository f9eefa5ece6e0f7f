"""Random samples on the device: the speed of a run whose data is free, and data for machines without DALI."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from omnitrunk.engine.data.batch import Batch
from omnitrunk.engine.data.config import DataConfig
from omnitrunk.kernels.philox import generator

SAMPLES = 64
CLASSES = 8


class RandomSamples:
    """A data set of 64 noise samples that live on `device`, with the shapes and types that the decoders give.

    Drawing fresh noise for every sample would cost more than the training step it is meant to expose, so position p is
    sample p // copies mod 64. Labels and class ids are below 8. `strides` are those of `ImageDecoder`.
    """

    fingerprint = "random"
    missing = 0

    def __init__(
        self, config: DataConfig, strides: Mapping[str, int], *, seed: int, device: torch.device | str
    ) -> None:
        draw = generator(seed, "random samples", 0)
        tensors: dict[str, np.ndarray] = {}
        for modality, stride in strides.items():
            tensors |= _noise(draw, modality, config, config.size // stride)
        self._tensors = {name: torch.from_numpy(values).to(device) for name, values in tensors.items()}
        self._copies = config.copies
        self._labels = torch.from_numpy(draw.integers(0, CLASSES, SAMPLES)).to(device)

    def __len__(self) -> int:
        return SAMPLES

    def batch(self, positions: np.ndarray) -> Batch:
        """The samples at `positions`, int64 (B,)."""
        rows = torch.from_numpy(positions // self._copies % SAMPLES).to(self._labels.device)
        return Batch({name: values[rows] for name, values in self._tensors.items()}, self._labels[rows], positions)


def _noise(draw: np.random.Generator, modality: str, config: DataConfig, size: int) -> dict[str, np.ndarray]:
    if modality in ("rgb", "video"):
        frames = (config.frames,) if modality == "video" else ()
        return {modality: draw.integers(0, 256, (SAMPLES, *frames, size, size, 3), dtype=np.uint8)}
    if modality == "depth":
        return {modality: draw.random((SAMPLES, size, size, 1), dtype=np.float32)}
    if modality == "audio":
        waves = 2 * draw.random((SAMPLES, config.waveform), dtype=np.float32) - 1
        return {"audio": waves, "audio_length": np.full(SAMPLES, config.waveform, dtype=np.int64)}
    if modality == "points":
        points = draw.standard_normal((SAMPLES, config.points, 3), dtype=np.float32) / 3
        parts = {"parts": draw.integers(0, config.parts, points.shape[:2])} if config.parts else {}
        return {modality: points, **parts}
    return {modality: draw.integers(0, CLASSES, (SAMPLES, size, size), dtype=np.uint8)}
