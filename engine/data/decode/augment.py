"""RandAugment by DALI, with nothing drawn by DALI: operations, strengths and signs are inputs of the graph.

Cubuk et al. 2020, in the form in which MAE and VideoMAE are fine-tuned: every one of a number of operations in a row is
skipped with probability 1/2, and its magnitude is normal around the one asked for, with deviation 0.5. DALI's own
`rand_augment` draws by a generator whose history a resumed run could not repeat; the operations are its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from omnitrunk.engine.data.decode.dali import dali
from omnitrunk.kernels.philox import uniform

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

OPERATIONS = (
    "identity",
    "auto_contrast",
    "brightness",
    "color",
    "contrast",
    "equalize",
    "invert",
    "posterize",
    "rotate",
    "sharpness",
    "shear_x",
    "shear_y",
    "solarize",
    "solarize_add",
    "translate_x",
    "translate_y",
)
"""DALI's names; the first stands for an operation that is skipped."""
MOVING = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
"""Operations that move pixels, and with them those of a map; all others change colors alone."""
APPLIED = 0.5
DEVIATION = 0.5
STRONGEST = 10
STEPS = 10
"""Magnitudes that are told apart, for each whole number."""
TRANSLATION = 0.45
"""Of the strongest magnitude, as a share of the picture."""
GREY = 128
"""What comes in where a picture is moved away."""


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """How pictures (H, W, 3) or clips (T, H, W, 3) of bytes are changed, as a function of (seed, position)."""

    operations: int
    """In a row, at least 1."""
    magnitude: float
    """From 0 to `STRONGEST`."""
    size: int
    """Height and width of what is changed, in pixels."""
    seed: int
    conditional: ClassVar[bool] = True

    def draw(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The operations, for rows at `positions` int64 (R,): int32 (R, operations) each."""
        draws = uniform(self.seed, "rand augment", positions, 5 * self.operations)
        applied, which, sign, radius, angle = np.moveaxis(draws.reshape(len(positions), -1, 5), 2, 0)
        normal = np.sqrt(-2 * np.log(1 - radius)) * np.cos(2 * np.pi * angle)  # Box and Muller 1958
        operation = 1 + np.floor(which * (len(OPERATIONS) - 1))
        magnitude = (self.magnitude + DEVIATION * normal).clip(0, STRONGEST)
        found = {
            "operation": np.where(applied < APPLIED, operation, 0),
            "magnitude": np.rint(STEPS * magnitude),
            "negative": sign < 0.5,
        }
        return {name: values.astype(np.int32) for name, values in found.items()}

    def inputs(self) -> dict[str, DataNode]:
        """What `draw` feeds, for the rows of one sample."""
        fn, types = dali("fn"), dali("types")
        names = ("operation", "magnitude", "negative")
        return {name: fn.external_source(name=name, dtype=types.INT32, ndim=2) for name in names}

    def change(self, pixels: DataNode, drawn: Mapping[str, DataNode], row: int) -> DataNode:
        """Adds the operations to a graph with conditionals; frames of a clip alike."""
        return self._apply(pixels, drawn, row, OPERATIONS, GREY)

    def move(self, values: DataNode, drawn: Mapping[str, DataNode], row: int, fill: float) -> DataNode:
        """Of the same operations, those that move pixels."""
        names = [name if name in MOVING else "identity" for name in OPERATIONS]
        return self._apply(values, drawn, row, names, fill)

    def _apply(
        self, pixels: DataNode, drawn: Mapping[str, DataNode], row: int, names: Sequence[str], fill: float
    ) -> DataNode:
        core = dali("auto_aug.core")
        bins = core.signed_bin(drawn["magnitude"], random_sign=drawn["negative"])
        options = {"num_magnitude_bins": STRONGEST * STEPS + 1, "shape": (self.size, self.size), "fill_value": fill}
        for step in range(self.operations):
            which = drawn["operation"][row, step]
            pixels = core.select(_suite(names), which, pixels, magnitude_bin=bins[row, step], **options)
        return pixels


def _suite(names: Sequence[str]) -> list[object]:
    """DALI's operations of these names."""
    suites, augmentations = dali("auto_aug.rand_augment"), dali("auto_aug.augmentations")
    found = suites.get_rand_augment_suite(use_shape=True, max_translate_rel=TRANSLATION)
    more = [augmentations.identity, augmentations.invert, augmentations.solarize_add]
    named = {entry.name: entry for entry in [*found, *more]}
    return [named[name] for name in names]
