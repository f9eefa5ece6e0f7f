"""Random pictures on the device: the speed of a run whose data is free, and data for machines without DALI."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from omnitrunk.engine.data.batch import Batch
from omnitrunk.kernels.philox import generator

PICTURES = 64
CLASSES = 8


class RandomImages:
    """A data set of 64 noise pictures that live on `device`; `strides` as for `ImageDecoder`, shapes and types as well.

    Drawing fresh pixels for every sample would cost more than the training step it is meant to expose, so position p is
    picture p mod 64. Labels and class ids are below 8.
    """

    fingerprint = "random"
    missing = 0

    def __init__(self, strides: Mapping[str, int], *, size: int, seed: int, device: torch.device | str) -> None:
        draw = generator(seed, "random pictures", 0)
        self._pictures = {
            modality: torch.from_numpy(_noise(draw, modality, size // stride)).to(device)
            for modality, stride in strides.items()
        }
        self._labels = torch.from_numpy(draw.integers(0, CLASSES, PICTURES)).to(device)

    def __len__(self) -> int:
        return PICTURES

    def batch(self, positions: np.ndarray) -> Batch:
        """The samples at `positions`, int64 (B,)."""
        rows = torch.from_numpy(positions % PICTURES).to(self._labels.device)
        return Batch({name: pixels[rows] for name, pixels in self._pictures.items()}, self._labels[rows], positions)


def _noise(draw: np.random.Generator, modality: str, size: int) -> np.ndarray:
    if modality == "rgb":
        return draw.integers(0, 256, (PICTURES, size, size, 3), dtype=np.uint8)
    if modality == "depth":
        return draw.random((PICTURES, size, size, 1), dtype=np.float32)
    return draw.integers(0, CLASSES, (PICTURES, size, size), dtype=np.uint8)
