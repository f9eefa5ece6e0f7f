"""RandAugment by DALI, with nothing drawn by DALI: operations, strengths and signs are inputs of the graph.

Cubuk et al. 2020, in the form in which MAE and VideoMAE are fine-tuned: every one of a number of operations in a row is
skipped with probability 1/2, and its magnitude is normal around the one asked for, with deviation 0.5. DALI's own
`rand_augment` draws by a generator whose history a resumed run could not repeat; the operations are its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    seed: int

    def draw(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """What `apply` needs for the samples at `positions` int64 (B,): int32 (B, operations) each."""
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

    def apply(self, pixels: DataNode, size: int) -> DataNode:
        """Adds the operations to a graph with conditionals; frames of `size` x `size`, those of a clip alike."""
        fn, types, core = dali("fn"), dali("types"), dali("auto_aug.core")
        operation, magnitude, negative = (
            fn.external_source(name=name, dtype=types.INT32, ndim=1) for name in ("operation", "magnitude", "negative")
        )
        bins = core.signed_bin(magnitude, random_sign=negative)
        options = {"num_magnitude_bins": STRONGEST * STEPS + 1, "shape": (size, size), "fill_value": GREY}
        for step in range(self.operations):
            pixels = core.select(_suite(), operation[step], pixels, magnitude_bin=bins[step], **options)
        return pixels


def _suite() -> list[object]:
    """DALI's operations in the order of `OPERATIONS`."""
    suites, augmentations = dali("auto_aug.rand_augment"), dali("auto_aug.augmentations")
    found = suites.get_rand_augment_suite(use_shape=True, max_translate_rel=TRANSLATION)
    named = {entry.name: entry for entry in [*found, augmentations.invert, augmentations.solarize_add]}
    return [named[name] for name in OPERATIONS]
