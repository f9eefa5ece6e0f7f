"""The classes of the embedded world: twelve solids, the names of their parts, how each moves and sounds.

A solid is built from one proportion in [0, 1] (how tall, how thick, how pointed), so a class is a family of shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from omnitrunk.engine.world.mesh import Mesh, arc, extrude, flat, line, merge, revolve, tube

__all__ = ["CLASSES", "PART_OFFSETS", "SOLIDS", "Solid"]


@dataclass(frozen=True)
class Solid:
    """One class: its part names, motion and timbre by name, and the mesh as a function of a proportion in [0, 1]."""

    parts: tuple[str, ...]
    motion: str
    timbre: str
    build: Callable[[float], Mesh]


def _sphere(proportion: float) -> Mesh:
    return merge(revolve(arc((0, 0), 1, -90, 0), 0), revolve(arc((0, 0), 1, 0, 90), 1))


def _hemisphere(proportion: float) -> Mesh:
    return merge(revolve(arc((0, 0), 1, -90, 0), 0), revolve(line((1, 0), (0, 0)), 1))


def _cylinder(proportion: float) -> Mesh:
    height = 1.9 + 0.9 * proportion
    base, lid = revolve(line((0, 0), (1, 0)), 0), revolve(line((1, height), (0, height)), 2)
    return merge(base, revolve(line((1, 0), (1, height)), 1), lid)


def _cone(proportion: float) -> Mesh:
    return merge(revolve(line((0, 0), (1, 0)), 0), revolve(line((1, 0), (0, 1.7 + 0.8 * proportion)), 1))


def _capsule(proportion: float) -> Mesh:
    length = 1.4 + 0.8 * proportion
    bottom, top = revolve(arc((0, 0), 1, -90, 0), 0), revolve(arc((0, length), 1, 0, 90), 2)
    return merge(bottom, revolve(line((1, 0), (1, length)), 1), top)


def _torus(proportion: float) -> Mesh:
    radius = 0.3 + 0.15 * proportion
    return merge(revolve(arc((1, 0), radius, -90, 90), 0), revolve(arc((1, 0), radius, 90, 270), 1))


def _cube(proportion: float) -> Mesh:
    height = 0.85 + 0.3 * proportion
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
    bottom, top = (np.insert(square, 2, z, axis=1) for z in (-height, height))
    sides = [flat(np.stack([bottom[i - 1], bottom[i], top[i], top[i - 1]]), 2) for i in range(4)]
    return merge(flat(bottom[::-1], 0), flat(top, 1), *sides)


def _pyramid(proportion: float) -> Mesh:
    base = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], dtype=float)
    apex = np.array([0, 0, 1.5 + 0.6 * proportion])
    sides = [flat(np.stack([base[i - 1], base[i], apex]), 1) for i in range(4)]
    return merge(flat(base[::-1], 0), *sides)


def _octahedron(proportion: float) -> Mesh:
    ring = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]], dtype=float)
    tip = np.array([0, 0, 1.15 + 0.4 * proportion])
    upper = [flat(np.stack([ring[i - 1], ring[i], tip]), 1) for i in range(4)]
    lower = [flat(np.stack([ring[i], ring[i - 1], -tip]), 0) for i in range(4)]
    return merge(*upper, *lower)


def _star(proportion: float) -> Mesh:
    angle = np.pi / 2 + np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2, 0.42 + 0.1 * proportion, 1.0)
    outline = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return extrude(outline, 0.45 + 0.2 * proportion, (0, 1, 2))


def _spring(proportion: float) -> Mesh:
    turns, height = 3.0, 1.9 + 0.6 * proportion
    along = np.linspace(0, 1, 97)
    angle = 2 * np.pi * turns * along
    path = np.stack([np.cos(angle), np.sin(angle), height * along], axis=1)
    radius = 0.2 + 0.05 * proportion
    return merge(tube(path[:49], radius, 0), tube(path[48:], radius, 1))


def _jack(proportion: float) -> Mesh:
    """Six square arms; their inner ends meet in a cube that nobody can see, so it has no faces."""
    width = 0.26 + 0.1 * proportion
    square = width * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
    near, far = np.insert(square, 2, width, axis=1), np.insert(square, 2, 1.0, axis=1)
    sides = [flat(np.stack([near[i - 1], near[i], far[i], far[i - 1]]), 0) for i in range(4)]
    arm = merge(flat(far, 1), *sides)
    turns = [np.roll(np.eye(3), shift, axis=0) for shift in range(3)]
    flips = [turn @ np.diag([1.0, -1.0, -1.0]) for turn in turns]
    return merge(*(Mesh(arm.corners @ turn.T, arm.normals @ turn.T, arm.parts) for turn in turns + flips))


SOLIDS: dict[str, Solid] = {
    "capsule": Solid(("lower cap", "body", "upper cap"), "tumble", "hum", _capsule),
    "cone": Solid(("base", "side"), "wobble", "flute", _cone),
    "cube": Solid(("bottom", "top", "sides"), "slide", "knock", _cube),
    "cylinder": Solid(("base", "side", "lid"), "roll", "rumble", _cylinder),
    "hemisphere": Solid(("dome", "lid"), "rock", "drum", _hemisphere),
    "jack": Solid(("arms", "tips"), "circle", "siren", _jack),
    "octahedron": Solid(("lower half", "upper half"), "hover", "chime", _octahedron),
    "pyramid": Solid(("base", "sides"), "shake", "buzz", _pyramid),
    "sphere": Solid(("lower half", "upper half"), "bounce", "boing", _sphere),
    "spring": Solid(("lower coil", "upper coil"), "stretch", "twang", _spring),
    "star": Solid(("front", "back", "rim"), "cartwheel", "sparkle", _star),
    "torus": Solid(("outside", "inside"), "swivel", "bell", _torus),
}

# Sorted by name, because a reader numbers the class folders in sorted order.
CLASSES: tuple[str, ...] = tuple(sorted(SOLIDS))

# Part labels count through all classes, as ShapeNetPart does: a class's parts start at its offset.
PART_OFFSETS: dict[str, int] = {
    name: sum(len(SOLIDS[before].parts) for before in CLASSES[:place]) for place, name in enumerate(CLASSES)
}
