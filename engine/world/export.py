"""A scene as the bytes of its seven files, one of each modality, and the facts a reader needs to interpret them."""

from __future__ import annotations

import numpy as np

from omnitrunk.engine.world import files
from omnitrunk.engine.world.body import Placed, place
from omnitrunk.engine.world.render import render
from omnitrunk.engine.world.room import background
from omnitrunk.engine.world.scene import CLIP_SIZE, FRAME_RATE, FRAMES, STILL, Scene, draw
from omnitrunk.engine.world.solids import CLASSES, PART_OFFSETS, SOLIDS
from omnitrunk.engine.world.sound import SAMPLE_RATE, TIMBRES, synthesize
from omnitrunk.kernels.philox import generator

__all__ = ["EXTENSIONS", "export", "facts"]

EXTENSIONS: dict[str, str] = {
    "rgb": "jpg",
    "depth": "png",
    "semseg": "png",
    "video": "webm",
    "audio": "flac",
    "points": "npy",
    "caption": "txt",
}
WALL, FLOOR, FIRST_SOLID = 0, 1, 2
# Depth is stored to a millimeter, spread over the 16 bits: they reach 8 meters, beyond the farthest corner.
DEPTH_RESOLUTION = 1024  # to the meter
DEPTH_STEPS = 8 * DEPTH_RESOLUTION
POINTS = 1024


def export(seed: int, index: int, size: int) -> tuple[str, dict[str, bytes]]:
    """The class of a scene and the bytes of its file in every modality; pictures and maps are size x size pixels."""
    scene = draw(seed, index, size)
    solid = place(scene.still, STILL)
    seen = background(scene.still_camera, scene.room, scene.light, size)
    still = render(solid, scene.still_camera, seen, scene.light, size)
    semantic = np.where(still.is_floor, FLOOR, WALL)
    semantic[still.is_solid] = FIRST_SOLID + CLASSES.index(scene.name)
    steps = np.minimum(np.round(still.depth * DEPTH_RESOLUTION) * (DEPTH_STEPS // DEPTH_RESOLUTION), 2**16 - 1)
    sound = synthesize(TIMBRES[SOLIDS[scene.name].timbre], scene.voice, generator(seed, "world.noise", index))
    return scene.name, {
        "rgb": files.encode_jpeg(still.rgb),
        "depth": files.encode_gray(steps.astype(np.uint16)),
        "semseg": files.encode_gray(semantic.astype(np.uint8)),
        "video": files.encode_clip(_clip(scene), FRAME_RATE),
        "audio": files.encode_sound(sound, SAMPLE_RATE),
        "points": files.encode_points(_point_cloud(scene, solid, generator(seed, "world.points", index))),
        "caption": (scene.caption + "\n").encode(),
    }


def _clip(scene: Scene) -> np.ndarray:
    """The frames (FRAMES, CLIP_SIZE, CLIP_SIZE, 3) uint8."""
    seen = background(scene.clip_camera, scene.room, scene.light, CLIP_SIZE)
    moments = (place(scene.clip, moment) for moment in range(FRAMES))
    return np.stack([render(solid, scene.clip_camera, seen, scene.light, CLIP_SIZE).rgb for solid in moments])


def _point_cloud(scene: Scene, solid: Placed, chance: np.random.Generator) -> np.ndarray:
    """POINTS random samples (POINTS, 4) of the still's surface: meters about their middle, and the part label."""
    parts = scene.still.surface.parts
    chosen = chance.choice(len(parts), POINTS, replace=False)
    points = solid.points[:, chosen].T
    points -= (points.min(axis=0) + points.max(axis=0)) / 2
    labels = PART_OFFSETS[scene.name] + parts[chosen]
    return np.concatenate([points, labels[:, None].astype(np.float32)], axis=1)


def facts(size: int) -> dict[str, object]:
    """What dataset.json says about the files, whatever the number of scenes."""
    return {
        "classes": list(CLASSES),
        "semseg_classes": FIRST_SOLID + len(CLASSES),
        "semseg_names": ["wall", "floor", *CLASSES],
        "parts": {
            name: {part: PART_OFFSETS[name] + place for place, part in enumerate(SOLIDS[name].parts)}
            for name in CLASSES
        },
        "image_size": [size, size],
        "depth_steps_per_meter": DEPTH_STEPS,
        "clip": {"frames": FRAMES, "rate": FRAME_RATE, "size": [CLIP_SIZE, CLIP_SIZE]},
        "audio": {"sample_rate": SAMPLE_RATE, "seconds": 1.0},
        "points": {"count": POINTS, "columns": ["x", "y", "z", "part"], "unit": "meter"},
    }
