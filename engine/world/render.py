"""Pictures of a solid in a room: z-buffered point splatting over the background, all in whole arrays.

The solid is splatted on a grid twice as fine as the picture and averaged down, which smooths its outline. Lengths are
meters; light is linear and stored with a gamma of 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnitrunk.engine.world.body import Placed
from omnitrunk.engine.world.camera import Camera, project
from omnitrunk.engine.world.room import Background, Light, shadow

__all__ = ["Picture", "render"]

FINE = 2  # splatting grid over picture grid, per side
FRAME = 3  # fine pixels around the picture that catch the splats outside it
EMPTY = np.uint64(2**64 - 1)
LOW_BITS = np.uint64(2**32 - 1)


@dataclass(frozen=True)
class Picture:
    """rgb (S, S, 3) uint8; depth (S, S) float, meters along the view axis; where solid and floor are seen (S, S)."""

    rgb: np.ndarray
    depth: np.ndarray
    is_solid: np.ndarray
    is_floor: np.ndarray


@dataclass(frozen=True)
class _Hits:
    """The H fine pixels that show the solid: the pixel of the picture each lies in, the sample it shows, its depth."""

    pixel: np.ndarray
    sample: np.ndarray
    depth: np.ndarray


def render(solid: Placed, camera: Camera, room: Background, light: Light, size: int) -> Picture:
    """The picture of size x size pixels of a solid in front of the background that the same camera sees."""
    hits = _splat(solid, camera, size)
    covered = np.bincount(hits.pixel, minlength=size * size)
    behind = room.ambient + room.direct * (1 - shadow(solid.points, room, light))
    color = np.empty((size * size, 3), dtype=np.float32)
    for channel, shade in enumerate(_shade(solid, camera, light, hits)):
        in_front = np.bincount(hits.pixel, shade, size * size)
        color[:, channel] = behind[channel] + (in_front - covered * behind[channel]) / FINE**2
    is_solid = covered > FINE**2 // 2
    nearness = np.bincount(hits.pixel, hits.depth, size * size) / np.maximum(covered, 1)
    depth = np.where(is_solid, nearness, room.depth)
    rgb = np.minimum(np.sqrt(np.maximum(color, 0)) * 255 + 0.5, 255).astype(np.uint8)
    masks = (mask.reshape(size, size) for mask in (is_solid, room.is_floor & ~is_solid))
    return Picture(rgb.reshape(size, size, 3), depth.reshape(size, size), *masks)


def _splat(solid: Placed, camera: Camera, size: int) -> _Hits:
    """The samples that win the z-buffer: each of those that face the camera covers the four fine pixels around it.

    A positive float orders like its bits, so one unsigned integer holds depth above sample number, and the nearest
    sample of a pixel is the smallest integer written to it.
    """
    width, wide = FINE * size, FINE * size + 2 * FRAME
    towards = camera.position.astype(np.float32)[:, None] - solid.points
    facing = np.flatnonzero(_dot(solid.normals, towards) > 0)
    across, down, depth = project(camera, solid.points.take(facing, axis=1))
    column, row = (
        np.clip(np.floor(part * width - 0.5), -FRAME, width + FRAME - 2).astype(np.int64) + FRAME
        for part in (across, down)
    )
    key = depth.view(np.uint32).astype(np.uint64) << np.uint64(32) | np.arange(len(depth), dtype=np.uint64)
    nearest = np.full(wide * wide, EMPTY)
    corner = row * wide + column
    for step in (0, 1, wide, wide + 1):
        np.minimum.at(nearest, corner + step, key)
    nearest = _close(nearest.reshape(wide, wide))[FRAME:-FRAME, FRAME:-FRAME]
    row, column = np.nonzero(nearest != EMPTY)
    winner = (nearest[row, column] & LOW_BITS).astype(np.int64)
    return _Hits(row // FINE * size + column // FINE, facing[winner], depth[winner])


def _close(nearest: np.ndarray) -> np.ndarray:
    """The z-buffer without the holes that the samples left and without the rim that the size of the splats added.

    The solid grows by a pixel into what is empty, which fills holes, and shrinks by that pixel and by the rim.
    """
    closed = nearest.copy()
    grown = np.minimum.reduce(_neighbors(nearest))
    np.copyto(closed[1:-1, 1:-1], grown, where=nearest[1:-1, 1:-1] == EMPTY)
    for _ in range(2):
        outermost = np.maximum.reduce(_neighbors(closed)) == EMPTY
        closed[1:-1, 1:-1][outermost] = EMPTY
    return closed


def _neighbors(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pixels left of, right of, above and below every pixel that has all four."""
    return grid[1:-1, :-2], grid[1:-1, 2:], grid[:-2, 1:-1], grid[2:, 1:-1]


def _shade(solid: Placed, camera: Camera, light: Light, hits: _Hits) -> np.ndarray:
    """The color (3, H) of the hits: ambient light, Lambert's law and a Blinn-Phong highlight."""
    point, normal = (part.take(hits.sample, axis=1) for part in (solid.points, solid.normals))
    direction = light.direction.astype(np.float32)[:, None]
    normal = _unit(normal)
    half = _unit(_unit(camera.position.astype(np.float32)[:, None] - point) + direction)
    lambert = np.maximum(_dot(normal, direction), 0)
    highlight = np.maximum(_dot(normal, half), 0) ** 24 * (lambert > 0)
    # Less ambient light arrives near the floor and from below.
    ambient = light.ambient * (0.6 + 0.4 * np.minimum(point[2] / 0.5, 1) + 0.15 * normal[2])
    color = light.color.astype(np.float32)[:, None]
    return solid.albedo.take(hits.sample, axis=1) * (ambient + color * lambert) + 0.25 * color * highlight


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt(_dot(vectors, vectors))


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]
