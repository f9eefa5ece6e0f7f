"""Random erasing: a rectangle of a picture becomes noise, or all one value (Zhong et al. 2020).

Sizes are those of the paper: an area of 2 % to 33 % of the picture, an aspect of 0.3 to 1 / 0.3. Every pixel of the
rectangle is normal noise around ImageNet's mean, cut to bytes, as MAE and VideoMAE are fine-tuned; or black, as
Omnivore is trained. B batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from omnitrunk.kernels.philox import generator, uniform
from omnitrunk.models.augmentation.boxes import inside, like_pixels
from omnitrunk.models.masking.plan import Plan
from omnitrunk.models.modality import IMAGENET_MEAN, IMAGENET_STD

AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)
TRIES = 10
NOISE_STARTS = 4096
"""Places in the noise where a sample's can begin, a pixel apart."""


@dataclass(frozen=True, kw_only=True)
class Erasing(Plan):
    """What is erased in one batch."""

    box: Tensor
    """int64 (B, 4): top, bottom, left, right; empty where nothing is."""
    start: Tensor
    """int64 (B,): the place in the noise where a sample's begins."""


def draw_erasing(seed: int, positions: np.ndarray, *, rate: float, shape: tuple[int, int] | None) -> Erasing | None:
    """The erasing of the samples at `positions` int64 (B,), each with probability `rate`; None at rate 0.

    `shape` is height and width of the pictures, None where a sample is none. The first of ten draws that is smaller
    than the picture is taken; if none is, nothing is erased.
    """
    if rate == 0 or shape is None:
        return None
    draws = uniform(seed, "erasing", positions, 2 * TRIES + 4)
    area = (AREA[0] + (AREA[1] - AREA[0]) * draws[:, :TRIES]) * shape[0] * shape[1]
    low, high = (math.log(aspect) for aspect in ASPECT)
    aspect = np.exp(low + (high - low) * draws[:, TRIES : 2 * TRIES])
    sides = np.rint(np.sqrt(np.stack([area * aspect, area / aspect], axis=2))).astype(np.int64)
    fits = (sides < shape).all(axis=2)
    chosen = sides[np.arange(len(sides)), fits.argmax(axis=1)]
    erased = fits.any(axis=1) & (draws[:, 2 * TRIES] < rate)
    first = np.floor(draws[:, 2 * TRIES + 1 : 2 * TRIES + 3] * (shape - chosen + 1)).astype(np.int64)
    box = np.stack([first, first + chosen], axis=2).reshape(-1, 4) * erased[:, None]
    start = np.floor(draws[:, -1] * NOISE_STARTS).astype(np.int64)
    return Erasing(box=torch.from_numpy(box), start=torch.from_numpy(start))


def fill_boxes(pixels: Tensor, erasing: Erasing, value: float) -> Tensor:
    """Images (B, H, W, C) or clips (B, T, H, W, C) with `value` in the boxes, the same in all frames of a clip."""
    return pixels.masked_fill(_boxes(pixels, erasing), value)


class Eraser(nn.Module):
    """Noise on the device, and its use.

    The noise is drawn once. A sample reads a stretch of it that begins at a place of its own: fresh noise for every
    value of every batch would cost a generator on the device and serve no purpose.
    """

    def __init__(self, pixels: int) -> None:
        """For samples of so many `pixels`, over all frames."""
        super().__init__()
        noise = generator(0, "erasing noise", 0).standard_normal((NOISE_STARTS + pixels, len(IMAGENET_MEAN)))
        levels = 255 * (noise * IMAGENET_STD + IMAGENET_MEAN)
        self.register_buffer("noise", torch.from_numpy(levels.round().clip(0, 255).astype(np.uint8)), persistent=False)

    def forward(self, pixels: Tensor, erasing: Erasing) -> Tensor:
        """Images (B, H, W, 3) or clips (B, T, H, W, 3) of bytes; the box of a clip is the same in all frames.

        ValueError where pixels are no bytes.
        """
        check_bytes(pixels)
        stretches = self.noise.flatten().unfold(0, pixels[0].numel(), self.noise.shape[1])
        return torch.where(_boxes(pixels, erasing), stretches[erasing.start].view(pixels.shape), pixels)


def check_bytes(pixels: Tensor) -> None:
    """ValueError where pixels are no bytes, of which it is known what black or noise is."""
    if pixels.dtype != torch.uint8:
        raise ValueError(f"random erasing makes bytes, not {pixels.dtype}: give uint8 pixels, or set erase to 0")


def _boxes(pixels: Tensor, erasing: Erasing) -> Tensor:
    """A mask that broadcasts over pixels."""
    return like_pixels(inside(erasing.box, *pixels.shape[-3:-1]), pixels)
