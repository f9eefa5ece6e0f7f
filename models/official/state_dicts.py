"""State dicts as the authors of the systems released them, in and out: names, shapes, the order of values in a row.

Both functions read the system's one layout, so each undoes the other and accounts for every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from omnitrunk.models.official.parts import Layout, read, write
from omnitrunk.models.systems import find_system


def from_official(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The state dict of the model of a configuration from a released one; types and devices stay.

    `state` is the pretraining model's complete state dict, under its official names. Raises ValueError for the first
    key that is missing, unexpected or of a wrong shape.
    """
    return read(state, layout(config))


def to_official(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The released model's state dict from that of the model of a configuration: the inverse of `from_official`.

    Raises ValueError for the first key that is missing, unexpected or of a wrong shape.
    """
    return write(state, layout(config))


def layout(config: Any) -> Layout:
    """All tensors of a released model of these sizes; several of one target are its rows from top to bottom."""
    return find_system(config.system).layout(config)
