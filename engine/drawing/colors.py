"""Colors for pictures of depth and of classes, made in a space where equal steps look equal.

The space is OKLab (Ottosson 2020): lightness 0..1, and two axes whose polar form is chroma and hue.
"""

from __future__ import annotations

import numpy as np

TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
GOLDEN_ANGLE = np.pi * (3 - 5**0.5)
"""Turning by it from one class to the next keeps any number of hues apart."""


def oklch_to_srgb(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """Lightness 0..1, chroma and hue in radians, each (n,), to uint8 (n, 3); colors outside sRGB are clipped."""
    lab = np.stack(np.broadcast_arrays(lightness, chroma * np.cos(hue), chroma * np.sin(hue)), axis=-1)
    linear = ((lab @ TO_LMS.T) ** 3 @ TO_RGB.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


def scale_colors(values: np.ndarray) -> np.ndarray:
    """Values 0..1 of any shape to uint8 (..., 3): from dark violet over green to bright yellow, lightness even."""
    steps = np.linspace(0, 1, 256)
    table = oklch_to_srgb(0.22 + 0.72 * steps, 0.11 + 0.04 * steps, np.deg2rad(310 - 205 * steps))
    return table[np.rint(255 * np.nan_to_num(values).clip(0, 1)).astype(np.uint8)]


def class_colors(count: int) -> np.ndarray:
    """The color of every class id, uint8 (count, 3), the same in every picture; 0 is dark grey."""
    ids = np.arange(count)
    colors = oklch_to_srgb(np.array([0.78, 0.62, 0.7])[ids % 3], np.array([0.13]), GOLDEN_ANGLE * ids)
    colors[0] = 70
    return colors
