"""One scene: everything about it is drawn from (seed, index), each part from a stream of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from omnitrunk.engine.world.body import Body, place
from omnitrunk.engine.world.camera import Camera, look_at, rotate
from omnitrunk.engine.world.mesh import Surface, sample
from omnitrunk.engine.world.motion import MOTIONS, Pose, compose, rotation
from omnitrunk.engine.world.room import Light, Room
from omnitrunk.engine.world.solids import CLASSES, SOLIDS
from omnitrunk.engine.world.sound import Voice
from omnitrunk.engine.world.texture import COLORS, PATTERNS, Texture, color_of, paint
from omnitrunk.kernels.philox import generator

__all__ = ["CLIP_SIZE", "CLIP_ZOOM", "FRAMES", "FRAME_RATE", "STILL", "Scene", "class_of", "draw", "split_of"]

FRAMES = 16
FRAME_RATE = 16
CLIP_SIZE = 64
CLIP_ZOOM = 0.75  # focal length of the clip's camera over the still's
STILL = FRAMES // 2  # the frame that the picture, the maps and the points show
SAMPLES_PER_PIXEL = 6  # of the still: enough that splats of 2 x 2 fine pixels leave hardly a hole
RIGHT, UP = np.eye(3)[[0, 2]]


@dataclass(frozen=True)
class Scene:
    """What there is to see and hear: a solid on its path through a lit room, two cameras and a voice.

    The body for the still has more samples than the one for the clip, and is the same otherwise.
    """

    name: str
    caption: str
    still: Body
    clip: Body
    still_camera: Camera
    clip_camera: Camera
    room: Room
    light: Light
    voice: Voice


def class_of(seed: int, index: int) -> str:
    """The class of a scene: every run of as many scenes as there are classes holds each class once, shuffled."""
    run, turn = divmod(index, len(CLASSES))
    return CLASSES[generator(seed, "world.class", run).permutation(len(CLASSES))[turn]]


def split_of(index: int) -> str:
    """Either train or val; whole runs of the classes go to val, one in five, so that both splits are balanced."""
    return "val" if index // len(CLASSES) % 5 == 1 else "train"


def draw(seed: int, index: int, size: int) -> Scene:
    """Scene number index of the world with this seed, its surface sampled for a still of size x size pixels."""
    name = class_of(seed, index)
    shape, look, view, sound = (generator(seed, f"world.{part}", index) for part in ("shape", "look", "view", "sound"))
    colors = [str(color) for color in look.permutation(list(COLORS))[:4]]
    skin = _texture(look, colors[0], colors[3], look.uniform(4, 9))
    wall, floor = (_texture(look, color, color, look.uniform(3, 9)) for color in colors[1:3])
    mesh, radius, center = SOLIDS[name].build(shape.uniform()), shape.uniform(0.55, 0.8), shape.uniform(-0.15, 0.15, 2)
    direction, speed = int(shape.choice((-1, 1))), shape.uniform(0.7, 2.0)
    path = _path(name, direction, shape.uniform() + speed * np.arange(FRAMES) / FRAME_RATE, shape.uniform(-0.4, 0.4))
    grain = compose(rotation(UP, look.uniform(0, np.pi)), rotation(RIGHT, look.uniform(0, np.pi)))
    surfaces = (sample(mesh, int(SAMPLES_PER_PIXEL * side**2)) for side in (size, CLIP_SIZE * CLIP_ZOOM))
    still, clip = (Body(surface, _skin(skin, grain, surface), radius, center, path) for surface in surfaces)
    still_camera, clip_camera = _cameras(view, _height(clip, [STILL]), _height(clip, range(0, FRAMES, 4)))
    return Scene(
        name=name,
        caption=_caption(name, radius, colors, skin.pattern, wall.pattern, direction, speed),
        still=still,
        clip=clip,
        still_camera=still_camera,
        clip_camera=clip_camera,
        room=Room(view.uniform(1.9, 3.0), view.uniform(1.5, 3.0), floor, wall),
        light=_light(view),
        voice=_voice(sound, radius, speed),
    )


def _path(name: str, direction: int, cycles: np.ndarray, heading: float) -> Pose:
    """The class's motion, with everything turned about the vertical by heading (radians)."""
    own = MOTIONS[SOLIDS[name].motion].path(cycles, direction)
    turn = rotation(UP, np.float64(heading))
    offset = np.einsum("ij,fj->fi", turn, own.offset)
    return Pose(offset, compose(turn, own.rotation), own.stretch)


def _height(body: Body, moments: Iterable[int]) -> float:
    """How high above the floor the body is on average."""
    return float(np.mean([place(body, moment).points[2].mean() for moment in moments]))


def _cameras(view: np.random.Generator, still_height: float, clip_height: float) -> tuple[Camera, Camera]:
    """Cameras in the same direction from the solid; the clip's has a wider view that keeps the motion in sight."""
    azimuth, elevation = view.uniform(-0.3, 0.3), view.uniform(0.25, 0.6)
    side = np.array([np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)])
    away, roll, focal = view.uniform(2.5, 3.0) * side, view.uniform(-0.12, 0.12), view.uniform(1.15, 1.3)
    aside = np.array([view.uniform(-0.1, 0.1), 0.0, view.uniform(-0.12, 0.12)])
    still, clip = aside + still_height * UP, aside + clip_height * UP
    return look_at(still + away, still, roll, focal), look_at(clip + away, clip, roll, CLIP_ZOOM * focal)


def _light(view: np.random.Generator) -> Light:
    around, height = view.uniform(-np.pi, 0), view.uniform(0.7, 1.3)
    direction = np.array([np.cos(around) * np.cos(height), np.sin(around) * np.cos(height), np.sin(height)])
    warmth, ambient = view.uniform(-0.1, 0.1), view.uniform(0.3, 0.5)
    color = view.uniform(0.65, 0.95) * np.array([1 + warmth, 1.0, 1 - warmth])
    return Light(direction, color, ambient)


def _texture(look: np.random.Generator, color: str, other: str, frequency: float) -> Texture:
    """A random pattern of two named colors; a color is paired with a lighter or darker one when it is its own pair."""
    first = color_of(color, look.uniform(-0.06, 0.06, 3))
    second = color_of(other, look.uniform(-0.06, 0.06, 3))
    if other == color:
        second = second * look.uniform(0.5, 0.8) + 0.08 * look.uniform()
    pattern = str(look.choice(list(PATTERNS)))
    return Texture(pattern, first, second, frequency, tuple(look.uniform(0, 2 * np.pi, 2)))


def _skin(texture: Texture, axes: np.ndarray, surface: Surface) -> np.ndarray:
    """The albedo (3, N) of a solid: the pattern runs through it along two random axes, as the grain of wood does."""
    u, v, _ = rotate(axes, surface.points)
    return paint(texture, u, v)


def _voice(generator: np.random.Generator, radius: float, speed: float) -> Voice:
    """Smaller solids sound higher and faster ones pulse faster, as one would expect; the rest is chance."""
    pitch = 300 * (0.65 / radius) ** 1.5 * 2 ** generator.uniform(-0.4, 0.4)
    loudness, hiss = 10 ** generator.uniform(-1.0, -0.1), 10 ** generator.uniform(-3.0, -2.3)
    return Voice(pitch, 1.5 * speed, loudness, generator.uniform(0.0, 0.25), hiss)


def _caption(
    name: str, radius: float, colors: list[str], pattern: str, wall_pattern: str, direction: int, speed: float
) -> str:
    motion = MOTIONS[SOLIDS[name].motion]
    size = "small" if radius < 0.63 else "large" if radius > 0.72 else "medium-sized"
    pace = "slowly" if speed < 1.1 else "quickly" if speed > 1.6 else ""
    solid = ["a", size, PATTERNS[pattern], colors[0], name]
    action = [motion.verb, pace, motion.directions[direction < 0]]
    wall = ["in front of a", PATTERNS[wall_pattern] or "plain", colors[1], "wall"]
    return " ".join(word for word in solid + action + wall if word)
