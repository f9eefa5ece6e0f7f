"""Triangle meshes with part labels, the few ways of building them, and an even sampler of their surface.

Arrays of points are component first, (3, N): the renderer works on whole components at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

__all__ = ["Curve", "Mesh", "Surface", "arc", "extrude", "flat", "line", "merge", "revolve", "sample", "tube"]

# Plastic number: its inverse powers give the best known additive recurrence in two dimensions (Roberts 2018, "R2").
PLASTIC = 1.32471795724474602596


@dataclass(frozen=True)
class Mesh:
    """Triangles (T, 3 corners, 3), the surface normal at every corner (same shape), and a part number (T,)."""

    corners: np.ndarray
    normals: np.ndarray
    parts: np.ndarray


@dataclass(frozen=True)
class Surface:
    """Samples of a surface: points (3, N) and normals of about unit length (3, N) float32, part numbers (N,) int64."""

    points: np.ndarray
    normals: np.ndarray
    parts: np.ndarray


@dataclass(frozen=True)
class Curve:
    """A piece of a profile in the plane (radius, height): points (K, 2) and outward normals (K, 2)."""

    points: np.ndarray
    normals: np.ndarray


def line(start: tuple[float, float], end: tuple[float, float], count: int = 16) -> Curve:
    """The straight piece from start to end; the outside lies to the right of the direction of travel.

    It has points in between as well, because samples spread badly over long thin triangles.
    """
    points = np.linspace(start, end, count)
    along = points[-1] - points[0]
    normal = np.array([along[1], -along[0]]) / np.hypot(*along)
    return Curve(points, np.tile(normal, (count, 1)))


def arc(center: tuple[float, float], radius: float, start: float, end: float, count: int = 16) -> Curve:
    """A piece of a circle, counter-clockwise from start to end in degrees; the outside is away from center."""
    angle = np.radians(np.linspace(start, end, count))
    normals = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Curve(np.asarray(center) + radius * normals, normals)


def merge(*meshes: Mesh) -> Mesh:
    """One mesh of all the triangles."""
    return Mesh(
        np.concatenate([mesh.corners for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.concatenate([mesh.parts for mesh in meshes]),
    )


def revolve(curve: Curve, part: int, segments: int = 40) -> Mesh:
    """The surface that a profile sweeps when it turns about the vertical axis."""
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    turn = np.stack([np.cos(angle), np.sin(angle)])

    def sweep(profile: np.ndarray) -> np.ndarray:
        height = np.broadcast_to(profile[:, 1:], (len(profile), segments + 1))
        return np.stack([profile[:, :1] * turn[0], profile[:, :1] * turn[1], height], axis=-1)

    return _sheet(sweep(curve.points), sweep(curve.normals), part)


def tube(path: np.ndarray, radius: float, part: int, segments: int = 14) -> Mesh:
    """A round tube along a path (K, 3) that is nowhere vertical, closed by flat ends."""
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    side = np.cross(along, [0.0, 0.0, 1.0])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    up = np.cross(side, along)
    angle = np.linspace(0, -2 * np.pi, segments + 1)[:, None]
    normals = np.cos(angle) * side[:, None] + np.sin(angle) * up[:, None]
    rings = path[:, None] + radius * normals
    ends = flat(rings[0, -2::-1], part), flat(rings[-1, :-1], part)
    return merge(_sheet(rings, normals, part), *ends)


def extrude(outline: np.ndarray, thickness: float, parts: tuple[int, int, int]) -> Mesh:
    """A prism over an outline (K, 2) in the plane (x, z), counter-clockwise; parts of its front, back and rim."""
    front, back = (np.insert(outline, 1, y, axis=1) for y in (-thickness / 2, thickness / 2))
    quads = [flat(np.stack([front[i - 1], back[i - 1], back[i], front[i]]), parts[2]) for i in range(len(outline))]
    return merge(flat(front, parts[0]), flat(back[::-1], parts[1]), *quads)


def flat(polygon: np.ndarray, part: int) -> Mesh:
    """A flat polygon (K, 3) that is star-shaped about its mean point, counter-clockwise as seen from outside."""
    center = np.broadcast_to(polygon.mean(axis=0), polygon.shape)
    corners = np.stack([center, polygon, np.roll(polygon, -1, axis=0)], axis=1)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).sum(axis=0)
    normals = np.broadcast_to(normal / np.linalg.norm(normal), corners.shape)
    return Mesh(corners, normals, np.full(len(corners), part))


def _sheet(points: np.ndarray, normals: np.ndarray, part: int) -> Mesh:
    """The triangles of a curved sheet given on a grid (rows, columns, 3)."""

    def triangles(grid: np.ndarray) -> np.ndarray:
        a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
        return np.stack([a, b, c, a, c, d], axis=2).reshape(-1, 3, 3)

    corners = triangles(points)
    return Mesh(corners, triangles(normals), np.full(len(corners), part))


def sample(mesh: Mesh, count: int) -> Surface:
    """Spread count samples evenly over the area of a mesh, which is first centered and scaled to size one.

    Triangles get samples in proportion to their area by systematic sampling; inside a triangle an additive
    recurrence places them. Nothing is random, so a rendered surface has no holes and no noise.
    """
    total = np.cumsum(_areas(mesh))
    corners = _unit_size(mesh.corners, total[-1])
    chosen = np.searchsorted(total, (np.arange(count) + 0.5) * (total[-1] / count))
    weights = _barycentric(count)
    return Surface(_blend(weights, corners, chosen), _blend(weights, mesh.normals, chosen), mesh.parts[chosen])


def _blend(weights: np.ndarray, corners: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Weighted means (3, N) of the corner values (T, 3, 3) of the chosen triangles (N,)."""
    values = corners.transpose(1, 2, 0).astype(np.float32, order="C")
    return sum(weight * value.take(chosen, axis=1) for weight, value in zip(weights, values, strict=True))


def _areas(mesh: Mesh) -> np.ndarray:
    first, second, third = mesh.corners[:, 0], mesh.corners[:, 1], mesh.corners[:, 2]
    return np.linalg.norm(np.cross(second - first, third - first), axis=1) / 2


def _unit_size(corners: np.ndarray, area: float) -> np.ndarray:
    """Centered corners of a solid of size one, as large in a picture as the unit sphere whatever the shape.

    The size is the geometric mean of the radius of the sphere around it and of the sphere with its area: the first
    alone would leave slender solids too small, the second alone those with deep folds.
    """
    low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
    centered = corners - (low + high) / 2
    around = np.sqrt((centered**2).sum(axis=2).max())
    return centered / np.sqrt(around * np.sqrt(area / (4 * np.pi)))


@cache
def _barycentric(count: int) -> np.ndarray:
    """Weights (3, count) of the corners: a two-dimensional recurrence, the square folded onto the triangle."""
    steps = np.arange(1, count + 1)
    u, v = (0.5 + steps / PLASTIC) % 1, (0.5 + steps / PLASTIC**2) % 1
    beyond = u + v > 1
    u, v = np.where(beyond, 1 - u, u), np.where(beyond, 1 - v, v)
    return np.stack([1 - u - v, u, v]).astype(np.float32)
