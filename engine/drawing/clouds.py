"""Point clouds drawn as pictures: what a model makes of the groups that it does not see, or of the parts of shapes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from omnitrunk.engine.drawing.colors import class_colors, scale_colors
from omnitrunk.engine.drawing.sheet import TILE, Panel

SIZE = TILE
"""Pixels of a picture, each side: as large as on the sheet, where dots would otherwise be resampled away."""
DOT = 2
"""Pixels of a point, each side."""
PAPER, EXTENT = 245, 1.15
TURN, TILT = 0.6, 0.45
"""Where the viewer stands, in radians around and above."""


def cloud_panel(name: str, sample: Mapping[str, Tensor], found: Tensor, mask: Tensor) -> Panel:
    """The panel of groups "groups" (B, G, k, 3) at "centers" (B, G, 3), `found` (B, G, 3 k), `mask` bool (B, G).

    Color is height. Groups overlap, so that a masked point may still be seen as part of a visible group.
    """
    centers, groups = sample["centers"].unsqueeze(2), sample["groups"]
    truth, predicted = (centers + x for x in (groups, found.nan_to_num().unflatten(-1, (-1, 3)).to(groups)))
    drawn = torch.where(mask[..., None, None], predicted, truth)
    pictures = {
        "input": [draw_cloud(cloud) for cloud in sample["points"]],
        "masked": [draw_cloud(groups[~hidden]) for groups, hidden in zip(truth, mask, strict=True)],
        "prediction": [draw_cloud(cloud) for cloud in drawn],
        "target": [draw_cloud(cloud) for cloud in truth],
    }
    stacked = {column: np.stack(images) for column, images in pictures.items()}
    return Panel(name=name, pictures=stacked, scale="height")


def parts_panel(points: Tensor, found: Tensor, truth: Tensor, first: Tensor) -> Panel:
    """The panel of clouds (B, N, 3) with parts int64 (B, N), by answer and by truth; `first` (B,) starts each class's.

    Parts are colored by their number within the class, from 1.
    """
    clouds, pictures, numbers = points.cpu(), {"input": [draw_cloud(cloud) for cloud in points.cpu()]}, []
    for caption, parts in (("prediction", found), ("target", truth)):
        numbers.append((parts - first[:, None]).cpu().clamp(min=-1) + 1)  # 0, grey, is a part of another class
        colors = class_colors(int(numbers[-1].max()) + 1)[numbers[-1]]
        pictures[caption] = [draw_cloud(*pair) for pair in zip(clouds, colors, strict=True)]
    classes = tuple(torch.cat(numbers).unique().tolist())
    return Panel(name="parts", pictures={name: np.stack(images) for name, images in pictures.items()}, classes=classes)


def draw_cloud(points: Tensor, colors: np.ndarray | None = None) -> np.ndarray:
    """Points (..., 3) in the unit ball as a picture uint8 (SIZE, SIZE, 3), seen from the side and a little from above.

    Near points cover far ones; what lies outside of the picture is not drawn. Without `colors` uint8 (points, 3) color
    is height.
    """
    x, y, z = points.reshape(-1, 3).double().numpy().T
    right = np.cos(TURN) * x - np.sin(TURN) * z
    depth = np.sin(TURN) * x + np.cos(TURN) * z
    up, near = np.cos(TILT) * y - np.sin(TILT) * depth, np.sin(TILT) * y + np.cos(TILT) * depth
    columns, rows = (np.rint((side / EXTENT + 1) / 2 * (SIZE - DOT)).astype(int) for side in (right, -up))
    inside = (columns >= 0) & (columns <= SIZE - DOT) & (rows >= 0) & (rows <= SIZE - DOT)
    picture = np.full((SIZE, SIZE, 3), PAPER, dtype=np.uint8)
    colors = scale_colors((y + 1) / 2) if colors is None else colors
    for point in np.argsort(near[inside], kind="stable"):
        row, column = rows[inside][point], columns[inside][point]
        picture[row : row + DOT, column : column + DOT] = colors[inside][point]
    return picture
