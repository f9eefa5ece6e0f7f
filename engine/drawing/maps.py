"""Maps of classes drawn beside the pictures that they were found in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from omnitrunk.engine.drawing.colors import class_colors, scale_colors
from omnitrunk.engine.drawing.sheet import Panel

BLANK = 255
"""Grey level of pixels without a label."""


def maps_panel(tensors: Mapping[str, Tensor], found: Tensor, truth: Tensor, ignored: int) -> Panel:
    """The panel of pictures "rgb" (B, H, W, 3), "depth" where it is there, and maps (B, h, w) by answer and by truth.

    Each depth map is drawn over its own range. Pixels labelled `ignored` stay white.
    """
    pictures = {"input": tensors["rgb"].cpu().numpy()}
    if "depth" in tensors:
        pictures["depth"] = _depth_colors(tensors["depth"][..., 0].float().cpu())
    maps = {"prediction": found.cpu().numpy(), "target": truth.cpu().numpy()}
    pictures |= {caption: _class_picture(ids, ignored) for caption, ids in maps.items()}
    classes = set().union(*(np.unique(ids).tolist() for ids in maps.values())) - {ignored}
    scale = "depth" if "depth" in tensors else ""
    return Panel(name="semseg", pictures=pictures, classes=tuple(sorted(classes)), scale=scale)


def _depth_colors(depth: Tensor) -> np.ndarray:
    low, high = (edge[:, None, None] for edge in (depth.amin(dim=(1, 2)), depth.amax(dim=(1, 2))))
    return scale_colors(((depth - low) / (high - low).clamp(min=1e-6)).numpy())


def _class_picture(ids: np.ndarray, ignored: int) -> np.ndarray:
    colors = class_colors(int(ids.max()) + 1)[ids]
    return np.where((ids == ignored)[..., None], np.uint8(BLANK), colors)
