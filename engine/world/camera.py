"""A pinhole camera: where it looks, the ray through every pixel, and the projection of points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Camera", "look_at", "project", "rays", "rotate"]


@dataclass(frozen=True)
class Camera:
    """position (3,) in meters; rows of axes (3, 3): right, down, forward; focal length in picture widths."""

    position: np.ndarray
    axes: np.ndarray
    focal: float


def look_at(position: np.ndarray, target: np.ndarray, roll: float, focal: float) -> Camera:
    """A camera at position that looks at target, turned by roll (radians) about its view axis."""
    forward = (target - position) / np.sqrt(((target - position) ** 2).sum())
    right = np.array([forward[1], -forward[0], 0.0]) / np.hypot(forward[0], forward[1])
    down = np.cross(forward, right)
    turned = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
    return Camera(position, np.stack([*turned, forward]), focal)


def rays(camera: Camera, size: int) -> np.ndarray:
    """World directions (3, size * size) float32 through the pixel centers, one meter long along the view axis."""
    across = ((np.arange(size) + 0.5) / size - 0.5) / camera.focal
    x, y = np.tile(across, size), np.repeat(across, size)
    return rotate(camera.axes.T, np.stack([x, y, np.ones_like(x)])).astype(np.float32)


def project(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of points (3, N): column and row in picture widths from the upper left corner, and depth in meters, (N,) each."""
    seen = rotate(camera.axes, points - camera.position.astype(np.float32)[:, None])
    scale = np.float32(camera.focal) / seen[2]
    return 0.5 + seen[0] * scale, 0.5 + seen[1] * scale, seen[2]


def rotate(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A matrix (3, 3) applied to points (3, N), in the type of the points.

    Written as sums of products: a matrix product would go through a threaded library whose last bit may depend on
    the number of threads, and the files of the world must not.
    """
    x, y, z = points
    turned = np.empty_like(points)
    for component, (a, b, c) in zip(turned, matrix.astype(points.dtype), strict=True):
        np.multiply(x, a, out=component)
        component += b * y
        component += c * z
    return turned
