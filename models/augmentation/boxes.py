"""Rectangles of pixels, one for each sample: numbers on the host, a mask on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def boxes_at(center: np.ndarray, sides: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """int64 (B, 4), top, bottom, left, right, of boxes with `sides` around `center`, both int64 (B, 2).

    What lies outside of a picture of `shape` is cut off.
    """
    edges = np.stack([center - sides // 2, center - sides // 2 + sides], axis=2)
    return edges.clip(0, np.array(shape)[:, None]).reshape(len(center), 4)


def box_shares(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The share of a picture of `shape` that every box covers, float64 (B,)."""
    return (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (shape[0] * shape[1])


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """A mask, bool (B, height, width): True in the boxes int64 (B, 4), end excluded."""
    top, bottom, left, right = boxes.T[..., None]
    rows, columns = (torch.arange(side, device=boxes.device) for side in (height, width))
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return down[:, :, None] & across[:, None]


def like_pixels(mask: Tensor, pixels: Tensor) -> Tensor:
    """A mask (B, H, W) that broadcasts over images (B, H, W, C), or over all frames of clips (B, T, H, W, C)."""
    return mask[..., None] if pixels.dim() == 4 else mask[:, None, ..., None]
