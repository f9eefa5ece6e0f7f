"""One sample between its files and its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np


class Picture(NamedTuple):
    """Height and width of a stored picture or map, in pixels."""

    height: int
    width: int


class Clip(NamedTuple):
    """What the container of a video says about it."""

    frames: int
    height: int
    width: int
    codec: str
    """VP8, VP9, MJPEG, H.264, HEVC, AV1, MPEG-4, or the container's own name of any other."""


class Sound(NamedTuple):
    """Length of a recording, in samples of each channel, and its sample rate in hertz."""

    samples: int
    rate: int


class Focal(NamedTuple):
    """The focal length of a sample's camera."""

    pixels: float


class Cloud(NamedTuple):
    """A point cloud as its file holds it."""

    points: np.ndarray
    """float32 (n, 3)."""
    labels: np.ndarray | None
    """Numbers of any type (n,), as yet unchecked: the part that each point belongs to, where the file says it."""


Facts: TypeAlias = Picture | Clip | Sound | Focal | Cloud
"""What the check of a file found out and its decoder needs; of a point cloud the cloud itself."""


@dataclass(slots=True)
class EncodedSample:
    """One sample as its files hold it. `files` and `facts` follow the order of the requested modalities."""

    position: int
    """Of its first row."""
    sample: int
    attempt: int
    """0 for the sample the cursor chose, n for its n-th substitute."""
    files: Sequence[bytes] = ()
    facts: Sequence[Facts] = ()
    fault: tuple[str, str] | None = None
    """(path, reason) when the sample cannot be used."""
