"""How the solids move: one function per kind of motion, from a phase to where the solid is and how it is turned.

Lengths are in radii of the solid, x points to the right and z up. The scene afterwards puts the lowest point of the
solid on the floor and then adds the height given here, so rocking and rolling need no formula for the contact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["MOTIONS", "Motion", "Pose", "rotation"]

X, Y, Z = np.eye(3)
TURN = 2 * np.pi
ROLL_HEADING = 0.8


@dataclass(frozen=True)
class Pose:
    """Of F moments: the place on the floor and the height (F, 3), the rotation (F, 3, 3), the stretch upwards (F,)."""

    offset: np.ndarray
    rotation: np.ndarray
    stretch: np.ndarray


@dataclass(frozen=True)
class Motion:
    """A verb for captions, what its two directions are called, and the path: cycles (F,), direction +-1 -> Pose."""

    verb: str
    directions: tuple[str, str]
    path: Callable[[np.ndarray, int], Pose]


def rotation(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) about a unit axis by angles (...) in radians (Rodrigues' formula)."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = np.asarray(angle, dtype=float)[..., None, None]
    # (axis axis^T - 1) is cross @ cross, written without a matrix product to stay clear of threaded libraries.
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (np.outer(axis, axis) - np.eye(3))


def compose(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The rotation (..., 3, 3) that turns by second and then by first."""
    return np.einsum("...ij,...jk->...ik", first, second)


def _pose(
    turns: np.ndarray,
    x: np.ndarray | float = 0.0,
    y: np.ndarray | float = 0.0,
    height: np.ndarray | float = 0.0,
    stretch: np.ndarray | float = 1.0,
) -> Pose:
    frames = len(turns)
    offset = np.stack([np.broadcast_to(part, frames) for part in (x, y, height)], axis=1)
    return Pose(offset, turns, np.broadcast_to(stretch, frames))


def _drift(cycles: np.ndarray, direction: int, length: float) -> np.ndarray:
    """Straight across the view; the middle of the clip is the middle of the way."""
    return direction * length * (cycles - cycles.mean())


def _bounce(cycles: np.ndarray, direction: int) -> Pose:
    still = rotation(Y, 0 * cycles)
    return _pose(still, x=_drift(cycles, direction, 0.3), height=0.5 * np.abs(np.sin(np.pi * cycles)))


def _cartwheel(cycles: np.ndarray, direction: int) -> Pose:
    return _pose(rotation(Y, direction * TURN * cycles / 2), x=_drift(cycles, direction, 0.4))


def _circle(cycles: np.ndarray, direction: int) -> Pose:
    angle = direction * TURN * cycles
    return _pose(rotation(Z, angle / 2), x=0.4 * np.cos(angle), y=0.4 * np.sin(angle))


def _hover(cycles: np.ndarray, direction: int) -> Pose:
    return _pose(rotation(Z, direction * TURN * cycles / 4), height=0.35 + 0.25 * np.sin(TURN * cycles))


def _rock(cycles: np.ndarray, direction: int) -> Pose:
    return _pose(rotation(Y, direction * 0.45 * np.sin(TURN * cycles)))


def _roll(cycles: np.ndarray, direction: int) -> Pose:
    """On its side, and diagonally, so that the view shows both the end and the length of the solid."""
    lying, askew = rotation(X, -TURN / 4 + 0 * cycles), rotation(Z, ROLL_HEADING + 0 * cycles)
    turns = compose(askew, compose(rotation(Y, direction * TURN * cycles / 2), lying))
    way = _drift(cycles, direction, 0.5)
    return _pose(turns, x=np.cos(ROLL_HEADING) * way, y=np.sin(ROLL_HEADING) * way)


def _shake(cycles: np.ndarray, direction: int) -> Pose:
    return _pose(rotation(Z, direction * 0.25 * np.sin(TURN * cycles)), x=direction * 0.2 * np.sin(2 * TURN * cycles))


def _slide(cycles: np.ndarray, direction: int) -> Pose:
    return _pose(rotation(Z, 0 * cycles), x=_drift(cycles, direction, 0.6))


def _stretch(cycles: np.ndarray, direction: int) -> Pose:
    return _pose(rotation(Z, direction * TURN * cycles / 8), stretch=1 + 0.3 * np.sin(TURN * cycles))


def _tumble(cycles: np.ndarray, direction: int) -> Pose:
    return _pose(rotation(Y, direction * TURN * cycles / 2), height=0.1 * np.abs(np.sin(TURN * cycles)))


def _swivel(cycles: np.ndarray, direction: int) -> Pose:
    upright = rotation(X, TURN / 4 + 0 * cycles)
    return _pose(compose(rotation(Z, direction * 0.5 * np.sin(TURN * cycles)), upright))


def _wobble(cycles: np.ndarray, direction: int) -> Pose:
    around = rotation(Z, direction * TURN * cycles)
    back = rotation(Z, -direction * TURN * cycles)
    return _pose(compose(compose(around, rotation(X, 0.35 + 0 * cycles)), back))


_SIDEWAYS = ("to the right", "to the left")
_AROUND = ("counterclockwise", "clockwise")
_NEITHER = ("", "")

MOTIONS: dict[str, Motion] = {
    "bounce": Motion("bouncing", _SIDEWAYS, _bounce),
    "cartwheel": Motion("cartwheeling", _SIDEWAYS, _cartwheel),
    "circle": Motion("circling", _AROUND, _circle),
    "hover": Motion("hovering and turning", _AROUND, _hover),
    "rock": Motion("rocking", _NEITHER, _rock),
    "roll": Motion("rolling", _SIDEWAYS, _roll),
    "shake": Motion("shaking", _NEITHER, _shake),
    "slide": Motion("sliding", _SIDEWAYS, _slide),
    "stretch": Motion("stretching and turning", _AROUND, _stretch),
    "tumble": Motion("tumbling", _SIDEWAYS, _tumble),
    "swivel": Motion("swiveling", _NEITHER, _swivel),
    "wobble": Motion("wobbling", _AROUND, _wobble),
}
