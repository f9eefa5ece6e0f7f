"""Between images in the recorded layout (B, C, h, w) and rows of patches (B, n, p * p * C) in ours."""

from __future__ import annotations

from torch import Tensor


def to_rows(image: Tensor, patch: int) -> Tensor:
    """Rows in (row, column, channel) order, patches in row-major order."""
    batch, channels, height, width = image.shape
    tiles = image.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def to_image(rows: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """The inverse of `to_rows` for an image of `size` (height, width)."""
    height, width = size
    patch = round((rows.shape[-1] / channels) ** 0.5)
    tiles = rows.reshape(len(rows), height // patch, width // patch, patch, patch, channels)
    return tiles.permute(0, 5, 1, 3, 2, 4).reshape(len(rows), channels, height, width)
