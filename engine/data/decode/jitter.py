"""Random brightness, contrast, saturation and hue by DALI, with nothing drawn by DALI: their factors are inputs.

The ranges are those of torchvision's ColorJitter. DALI applies all four in one step and contrast around mid-grey, where
torchvision applies them one after the other in random order and contrast around the mean of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from omnitrunk.engine.data.decode.dali import dali
from omnitrunk.kernels.philox import uniform

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

FACTORS = ("brightness", "contrast", "saturation")
NAMES = (*FACTORS, "hue")
GREATEST_HUE = 0.5
"""Turns of the color circle, either way: all of it."""


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """How pictures (H, W, 3) or clips (T, H, W, 3) of bytes are tinted, as a function of (seed, position)."""

    strength: float
    """From 0 to 1: factors lie in 1 - strength to 1 + strength, hue up to as many turns either way."""
    seed: int
    conditional: ClassVar[bool] = False

    def draw(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The factors, and the hue in degrees, float32 (R,) each, for rows at `positions` int64 (R,)."""
        changes = 2 * uniform(self.seed, "color jitter", positions, len(FACTORS) + 1) - 1
        factors = (1 + self.strength * changes[:, :-1]).astype(np.float32)
        hue = 360 * min(self.strength, GREATEST_HUE) * changes[:, -1]
        return dict(zip(FACTORS, factors.T, strict=True)) | {"hue": hue.astype(np.float32)}

    def inputs(self) -> dict[str, DataNode]:
        """What `draw` feeds, for the rows of one sample."""
        fn, types = dali("fn"), dali("types")
        return {name: fn.external_source(name=name, dtype=types.FLOAT, ndim=1) for name in NAMES}

    def change(self, pixels: DataNode, drawn: Mapping[str, DataNode], row: int) -> DataNode:
        """The colors of the `row`-th row of a sample; frames of a clip alike."""
        return dali("fn").color_twist(pixels, **{name: drawn[name][row] for name in NAMES})

    def move(self, values: DataNode, _drawn: Mapping[str, DataNode], _row: int, _fill: float) -> DataNode:
        """Nothing: a map has no colors."""
        return values
