"""Robust standardization: the scale of pseudo depth is arbitrary, so each sample is scaled by its own middle pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def robust_standardize(pixels: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Every sample of floating (B, H, W, C) to mean 0 and variance 1 of its sorted values from 10 % to 90 %.

    Of n sorted values those with index int(0.1 n) up to int(0.9 n) - 1 give the mean and the unbiased variance; all
    pixels become (x - mean) / sqrt(variance + epsilon). Bachmann et al. 2022, released code.
    """
    flat = pixels.flatten(1)
    count = flat.shape[1]
    middle = _sorted_rows(flat)[:, int(0.1 * count) : int(0.9 * count)]
    mean = middle.mean(dim=1, keepdim=True)
    # A norm, because torch's var takes three times as long on CPUs.
    squares = torch.linalg.vector_norm(middle - mean, dim=1, keepdim=True).square()
    variance = squares / max(middle.shape[1] - 1, 1)
    return ((flat - mean) / (variance + epsilon).sqrt()).view_as(pixels)


def _sorted_rows(values: Tensor) -> Tensor:
    # On the CPU numpy's vectorized sort takes 0.4 ms for 64 x 4096 values, torch's takes 32 ms.
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(dim=1).values
