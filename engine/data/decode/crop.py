"""Which rectangle of each picture is used, and whether it is mirrored: one answer for all modalities of a sample."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from omnitrunk.kernels.philox import uniform

ASPECT = (3 / 4, 4 / 3)
"""Least and greatest width / height of a random crop."""
TRIES = 10


class Crop(NamedTuple):
    """Rectangles of B pictures, in pixels of the stored picture."""

    anchor: np.ndarray
    """int64 (B, 2): top, left."""
    shape: np.ndarray
    """int64 (B, 2): height, width."""
    flip: np.ndarray
    """int32 (B,): 1 mirrors left and right, after the resize."""


def random_crop(
    heights: np.ndarray, widths: np.ndarray, positions: np.ndarray, *, seed: int, area: tuple[float, float], flip: bool
) -> Crop:
    """Random-resized crops of pictures of `heights` x `widths` (int64 (B,)), drawn from (seed, position) alone.

    A crop has a uniform share `area` = (least, greatest) of the picture and a log-uniform aspect in `ASPECT`. The first
    of ten draws that fits is taken; if none fits, the largest centred crop whose aspect is allowed (the rule of
    torchvision's RandomResizedCrop, after Szegedy et al. 2015, section 6). `flip` mirrors every other sample at random.
    """
    draws = uniform(seed, "crop", positions, 2 * TRIES + 3)
    pixels = (heights * widths)[:, None]
    wanted = pixels * (area[0] + (area[1] - area[0]) * draws[:, :TRIES])
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    aspect = np.exp(low + (high - low) * draws[:, TRIES : 2 * TRIES])
    width = np.rint(np.sqrt(wanted * aspect)).astype(np.int64)
    height = np.rint(np.sqrt(wanted / aspect)).astype(np.int64)
    fits = (width > 0) & (width <= widths[:, None]) & (height > 0) & (height <= heights[:, None])
    rows, first = np.arange(len(positions)), fits.argmax(axis=1)
    shape = np.stack([height[rows, first], width[rows, first]], axis=1)
    room = np.stack([heights, widths], axis=1) - shape
    anchor = np.floor(draws[:, 2 * TRIES : 2 * TRIES + 2] * (room + 1)).astype(np.int64)
    none = ~fits.any(axis=1)
    anchor[none], shape[none] = _largest_centred(heights[none], widths[none], *ASPECT)
    return Crop(anchor, shape, (draws[:, -1] < 0.5).astype(np.int32) * int(flip))


def center_crop(heights: np.ndarray, widths: np.ndarray, positions: np.ndarray) -> Crop:
    """The largest centred squares, not mirrored: what evaluation sees at every position."""
    anchor, shape = _largest_centred(heights, widths, 1.0, 1.0)
    return Crop(anchor, shape, np.zeros(len(positions), dtype=np.int32))


def spread_squares(heights: np.ndarray, widths: np.ndarray, positions: np.ndarray, *, count: int) -> Crop:
    """The largest squares, `count` along the longer side from its start to its end, not mirrored.

    Rows come in groups of `count`, one for each square of a picture. The places between are rounded up, as in the
    test protocol of Girdhar et al. 2022 (Omnivore).
    """
    size = np.minimum(heights, widths)
    anchor = spread_anchors(heights, widths, size, np.arange(len(positions)) % count, count=count)
    return Crop(anchor, np.stack([size, size], axis=1), np.zeros(len(positions), dtype=np.int32))


def spread_anchors(
    heights: np.ndarray, widths: np.ndarray, size: np.ndarray, which: np.ndarray, *, count: int
) -> np.ndarray:
    """Top and left, int64 (B, 2), of the square number `which` of `count`; the shorter side is cut in the middle."""
    room = np.stack([heights, widths], axis=1) - size[:, None]
    spread = -(-which[:, None] * room // (count - 1))
    longer = np.where(widths >= heights, 1, 0)[:, None] == np.arange(2)
    return np.where(longer, spread, -(-room // 2))


def _largest_centred(
    heights: np.ndarray, widths: np.ndarray, least: float, greatest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Anchor and shape (B, 2) of the largest centred crops with least <= width / height <= greatest."""
    height = np.minimum(heights, np.rint(widths / least).astype(np.int64))
    width = np.minimum(widths, np.rint(heights * greatest).astype(np.int64))
    shape = np.maximum(np.stack([height, width], axis=1), 1)
    return (np.stack([heights, widths], axis=1) - shape) // 2, shape
