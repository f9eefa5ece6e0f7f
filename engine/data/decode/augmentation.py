"""What every random change of pictures and clips offers, and its application to the rows of one sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode


class Augmentation(Protocol):
    """Changes that happen after the crop. They are drawn on the host and are inputs of the graph."""

    conditional: bool
    """Whether its graph chooses operations for every sample; such graphs take seconds to build."""

    def draw(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """For rows at `positions` int64 (R,), arrays (R, ...) named like the inputs."""

    def inputs(self) -> dict[str, DataNode]:
        """The inputs of the graph, each with the numbers of all rows of one sample."""

    def change(self, pixels: DataNode, drawn: Mapping[str, DataNode], row: int) -> DataNode:
        """A picture (H, W, 3) or clip (T, H, W, 3) of bytes, as the `row`-th row of its sample shows it."""

    def move(self, values: DataNode, drawn: Mapping[str, DataNode], row: int, fill: float) -> DataNode:
        """A map (H, W, 1) that goes with the picture: moved like it, with `fill` where nothing is, else as it was."""


class Augmentations:
    """Several in a row, or none."""

    def __init__(self, steps: Sequence[Augmentation] = ()) -> None:
        self._steps = tuple(steps)
        self.conditional = any(step.conditional for step in steps)

    def draw(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of all steps."""
        return {name: values for step in self._steps for name, values in step.draw(positions).items()}

    def inputs(self) -> dict[str, DataNode]:
        """The inputs of all steps."""
        return {name: node for step in self._steps for name, node in step.inputs().items()}

    def change(self, pixels: DataNode, drawn: Mapping[str, DataNode], row: int) -> DataNode:
        """A picture or clip after all steps."""
        for step in self._steps:
            pixels = step.change(pixels, drawn, row)
        return pixels

    def move(self, values: DataNode, drawn: Mapping[str, DataNode], row: int, fill: float) -> DataNode:
        """A map after all steps."""
        for step in self._steps:
            values = step.move(values, drawn, row, fill)
        return values


UNCHANGED = Augmentations()
