"""The solid of a scene as a thing in the world: its surface, its skin, and where its path takes it at each moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnitrunk.engine.world.camera import rotate
from omnitrunk.engine.world.mesh import Surface
from omnitrunk.engine.world.motion import Pose

__all__ = ["Body", "Placed", "place"]


@dataclass(frozen=True)
class Body:
    """A surface of size one with its albedo (3, N), a radius and a place on the floor (2,) in meters, and a path."""

    surface: Surface
    albedo: np.ndarray
    radius: float
    center: np.ndarray
    path: Pose


@dataclass(frozen=True)
class Placed:
    """A body at one moment: points (3, N) in meters, normals (3, N) of any length, albedo (3, N), all float32."""

    points: np.ndarray
    normals: np.ndarray
    albedo: np.ndarray


def place(body: Body, moment: int) -> Placed:
    """The body at a moment of its path: its lowest point is put on the floor, then the path's height is added."""
    offset, stretch = body.radius * body.path.offset[moment], body.path.stretch[moment]
    scale = np.array([1.0, 1.0, stretch])
    turn = body.path.rotation[moment]
    points = rotate(turn * (body.radius * scale), body.surface.points)
    offset += [*body.center, -points[2].min()]
    points += offset.astype(np.float32)[:, None]
    return Placed(points, rotate(turn / scale, body.surface.normals), body.albedo)
