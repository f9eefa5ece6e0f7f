"""The background: floor and three walls of a room, found by one ray per pixel, lit, and darkened by a soft shadow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnitrunk.engine.world.camera import Camera, rays
from omnitrunk.engine.world.texture import Texture, paint

__all__ = ["Background", "Light", "Room", "background", "shadow"]

CELLS = 48
SPAN = 4.8  # meters: the square of floor about the origin that can receive the shadow


@dataclass(frozen=True)
class Room:
    """Floor at z = 0, walls at x = -half_width, x = half_width and y = back (meters), with their textures."""

    half_width: float
    back: float
    floor: Texture
    wall: Texture


@dataclass(frozen=True)
class Light:
    """Unit direction (3,) towards the light, color (3,) of the direct light, share of ambient light."""

    direction: np.ndarray
    color: np.ndarray
    ambient: float


@dataclass(frozen=True)
class Background:
    """The empty room as P pixels see it: the points hit (3, P), depth (P,), floor mask (P,), and two lights (3, P)."""

    points: np.ndarray
    depth: np.ndarray
    is_floor: np.ndarray
    ambient: np.ndarray
    direct: np.ndarray


def background(camera: Camera, room: Room, light: Light, size: int) -> Background:
    """The room without its solid; ambient + direct is its color, and a shadow takes the direct light away."""
    directions, eye = rays(camera, size), camera.position.astype(np.float32)
    with np.errstate(divide="ignore"):
        side = (np.where(directions[0] < 0, -room.half_width, room.half_width) - eye[0]) / directions[0]
        back = np.where(directions[1] > 0, (room.back - eye[1]) / directions[1], np.inf)
        down = np.where(directions[2] < 0, -eye[2] / directions[2], np.inf)
    reach = np.stack([side, back, down]).astype(np.float32)
    plane, depth = reach.argmin(axis=0), reach.min(axis=0)
    points = eye[:, None] + depth * directions
    is_floor = plane == 2
    facing = np.stack([-np.sign(points[0]) * light.direction[0], np.full(len(plane), -light.direction[1])])
    facing = np.where(is_floor, light.direction[2], np.where(plane == 0, facing[0], facing[1]))
    albedo = np.where(
        is_floor, paint(room.floor, points[0], points[1]), paint(room.wall, points[0] + points[1], points[2])
    ) * _corner_darkening(room, points, is_floor)
    ambient = albedo * np.float32(light.ambient)
    direct = albedo * (np.maximum(facing, 0) * light.color[:, None]).astype(np.float32)
    return Background(points, depth, is_floor, ambient, direct)


def _corner_darkening(room: Room, points: np.ndarray, is_floor: np.ndarray) -> np.ndarray:
    """Less light reaches the corner between floor and wall: a factor (P,) in [0.7, 1]."""
    to_wall = np.minimum(room.half_width - np.abs(points[0]), room.back - points[1])
    distance = np.where(is_floor, to_wall, points[2])
    return 1 - 0.3 * np.exp(-3 * np.maximum(distance, 0)).astype(np.float32)


def shadow(points: np.ndarray, seen: Background, light: Light) -> np.ndarray:
    """The share of direct light (P,) that the solid's points (3, N) keep from the floor: 0 on the walls.

    The points are projected along the light onto a grid on the floor, which is blurred and then read bilinearly.
    """
    slope = (light.direction[:2] / light.direction[2]).astype(np.float32)[:, None]
    column, row = np.clip(_cell(points[:2] - slope * points[2]), 0, CELLS - 1).astype(np.int64)
    grid = np.zeros((CELLS, CELLS), dtype=np.float32)
    grid[row, column] = 1
    floor = np.flatnonzero(seen.is_floor)
    dark = np.zeros(len(seen.depth), dtype=np.float32)
    dark[floor] = _bilinear(_blur(_blur(grid)), *(_cell(seen.points[:2, floor]) - 0.5))
    return dark


def _cell(places: np.ndarray) -> np.ndarray:
    """Meters on the floor in cells of the shadow's grid."""
    return places * np.float32(CELLS / SPAN) + np.float32(CELLS / 2)


def _blur(grid: np.ndarray) -> np.ndarray:
    """The mean of 3 x 3 cells; zero along the border."""
    blurred = np.zeros_like(grid)
    rows = grid[:-2] + grid[1:-1] + grid[2:]
    blurred[1:-1, 1:-1] = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9
    return blurred


def _bilinear(grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values (P,) of a grid at the places x, y (P,) in cells, held at the border."""
    x, y = np.clip(x, 0, CELLS - 1.001), np.clip(y, 0, CELLS - 1.001)
    column, row = x.astype(np.int64), y.astype(np.int64)
    right, below = x - column, y - row
    upper = grid[row, column] * (1 - right) + grid[row, column + 1] * right
    lower = grid[row + 1, column] * (1 - right) + grid[row + 1, column + 1] * right
    return upper * (1 - below) + lower * below
