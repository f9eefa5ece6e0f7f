"""Depth as the disparity that a stereo camera would see: near things are large, and far ones differ little.

The conversion of Girdhar et al. 2022 (Omnivore), which their released weights expect. It is done after the resize: a
mean of meters is a depth. As there, the focal length stays that of the stored picture, whatever the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from omnitrunk.engine.data.decode.dali import dali
from omnitrunk.engine.data.sample import EncodedSample, Focal

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

METERS = (0.01, 50.0)
"""Depths are clipped to these; no depth at all, stored as 0, counts as the nearest, as in the released code."""
PIXELS = (0.01, 75.0)
"""Disparities are clipped to these, and then divided by the greatest."""
ROTATED_METERS = 8.0
"""Greatest depth in rotated files (the toolbox of SUN RGB-D, Song et al. 2015)."""
NORMS = {"released": (0.0418, 0.0295), "plain": (0.0, 1.0)}
"""Mean and deviation that standardize a disparity in [0, 1]: those that go with the released weights, or none."""


@dataclass(frozen=True, kw_only=True)
class Disparity:
    """From stored depth to standardized disparity."""

    unit: float
    """Meters of one stored step."""
    baseline: float
    """Meters between the two lenses."""
    focal: float = 0.0
    """Focal length in pixels; 0 where each sample brings its own, the last of its files."""
    rotated: bool = False
    """Whether the 16 stored bits were rotated left by three places, as SUN RGB-D has them."""
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def farthest(self) -> float:
        """What stands for nothing there: the least disparity, standardized."""
        return (PIXELS[0] / PIXELS[1] - self.mean) / self.deviation

    def focals(self, rows: Sequence[EncodedSample]) -> np.ndarray:
        """float32 (B,): the focal length of every sample in pixels."""
        if self.focal:
            return np.full(len(rows), self.focal, dtype=np.float32)
        found = [row.facts[-1] for row in rows]
        assert all(isinstance(fact, Focal) for fact in found)
        return np.array([fact.pixels for fact in found], dtype=np.float32)

    def straighten(self, stored: DataNode) -> DataNode:
        """Depth uint16 (H, W, 1) as stored, with its bits in place; rotated numbers do not mix."""
        if not self.rotated:
            return stored
        eight, seven, back = (dali("types").Constant(np.uint16(number)) for number in (8, 7, 8192))
        return stored // eight + (stored & seven) * back

    def convert(self, stored: DataNode, focal: DataNode) -> DataNode:
        """Standardized disparity, float32 (H, W, 1), of depth in stored steps, float32, and a focal length."""
        math = dali("math")
        meters = stored * self.unit
        if self.rotated:
            meters = math.min(meters, ROTATED_METERS)
        return self.standardize(self.baseline * focal / math.clamp(meters, *METERS))

    def standardize(self, disparity: DataNode) -> DataNode:
        """Disparity in pixels, clipped, as a share of the greatest, less the mean and by the deviation."""
        return (dali("math").clamp(disparity, *PIXELS) / PIXELS[1] - self.mean) / self.deviation
