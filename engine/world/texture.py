"""Colors and patterns of solids, floor and walls; drawn without regard to the class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["COLORS", "PATTERNS", "Texture", "color_of", "paint"]

# sRGB in [0, 1].
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.16, 0.14),
    "orange": (0.95, 0.52, 0.10),
    "yellow": (0.95, 0.84, 0.22),
    "green": (0.20, 0.62, 0.25),
    "teal": (0.12, 0.58, 0.60),
    "blue": (0.16, 0.34, 0.80),
    "purple": (0.50, 0.24, 0.68),
    "pink": (0.94, 0.54, 0.68),
    "brown": (0.50, 0.32, 0.18),
    "white": (0.92, 0.92, 0.88),
    "gray": (0.52, 0.53, 0.55),
    "black": (0.13, 0.13, 0.15),
}

# The pattern's name and the word for it in a caption.
PATTERNS: dict[str, str] = {
    "plain": "",
    "stripes": "striped",
    "checks": "checkered",
    "dots": "dotted",
    "clouds": "marbled",
}


@dataclass(frozen=True)
class Texture:
    """A pattern of two linear-light colors (3,); frequency in radians per unit of length, phases of the two axes."""

    pattern: str
    first: np.ndarray
    second: np.ndarray
    frequency: float
    phases: tuple[float, float]


def color_of(name: str, jitter: np.ndarray) -> np.ndarray:
    """A named color in linear light, (3,), moved by a jitter (3,) in sRGB."""
    return np.clip(np.asarray(COLORS[name]) + jitter, 0.02, 0.98) ** 2


def paint(texture: Texture, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The albedo (3, N) at texture coordinates u, v (N,)."""
    share = _share(texture, u * texture.frequency + texture.phases[0], v * texture.frequency + texture.phases[1])
    first, second = texture.first.astype(np.float32), texture.second.astype(np.float32)
    return first[:, None] + (second - first)[:, None] * share.astype(np.float32)


def _share(texture: Texture, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How much of the second color: edges are ramps about a pixel wide, not steps, so that nothing shimmers."""
    if texture.pattern == "plain":
        return np.zeros_like(u)
    if texture.pattern == "stripes":
        return _step(np.sin(u))
    if texture.pattern == "checks":
        return _step(2 * np.sin(u) * np.sin(v))
    if texture.pattern == "dots":
        return _step(np.sin(u) * np.sin(v) - 0.45)
    return 0.5 + 0.25 * (np.sin(u + 1.7 * np.sin(0.6 * v)) + np.sin(1.3 * v + 2.1 * np.sin(0.5 * u)))


def _step(signed: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 4 * signed, 0, 1)
