"""What a text file says about a camera."""

from __future__ import annotations

import math

from omnitrunk.engine.data.sample import Focal
from omnitrunk.engine.data.verify.images import BadFile


def verify_intrinsics(data: bytes) -> Focal:
    """The focal length in pixels: the first number of the file, as in the camera matrices of SUN RGB-D; or BadFile."""
    words = data.decode("ascii", "replace").replace(",", " ").split()
    if not words:
        raise BadFile("empty file")
    try:
        pixels = float(words[0])
    except ValueError:
        raise BadFile(f"begins with {words[0][:20]!r}, not with a focal length in pixels") from None
    if not 0 < pixels < math.inf:
        raise BadFile(f"begins with {words[0][:20]}: a focal length is a positive number of pixels")
    return Focal(pixels)
