"""A tiny Omnivore of pictures, clips and pictures with depth, and files of one set of scenes for all three."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from omnitrunk.engine.config import read
from tests.engine.data_files import encode_video, levels, write_folder, write_modality

MODEL = {
    "system": "omnivore", "image_sets": {"pictures": 2}, "video_sets": {"clips": 2}, "rgbd_sets": {"views": 2},
    "image_size": 32, "frames": 4, "width": 8, "depths": [1, 2], "heads": [1, 2], "window": [2, 4, 4],
}  # fmt: skip


def write_scenes(root, rng, train=6, val=4):
    """The same classes and stems in rgb, depth and video."""
    for split, count in (("train", train), ("val", val)):
        write_folder(root, split, count, rng, height=40, width=40)
        clips = [encode_video(levels(int(rng.integers(8, 16)), 40, 40)) for _ in range(count)]
        write_modality(root, split, "video", ".webm", clips)


def joint(folder, root, model=(), **sections):
    """The configuration of a run on these files; `model` are other fields of the model, sections as in a recipe."""
    values = {
        "run": {"folder": str(folder), "steps": 2, "device": "cpu"},
        "data": {"root": str(root), "batch": 2, "size": 32, "threads": 1, "frames": 4, "frame_stride": 2},
        "mixture": {"sets": {"pictures": {}, "clips": {}, "views": {}}},
        "model": {**MODEL, **dict(model)},
        "optimizer": {"warmup_steps": 1},
        "log": {"tensorboard": False, "images_every": 0},
    }
    for section, fields in sections.items():
        values[section] = {**values.get(section, {}), **fields}
    return read(values)


def scenes(tmp_path, seed, **counts):
    """The root of a data set written from a seed."""
    root = Path(tmp_path) / "data"
    write_scenes(root, np.random.default_rng(seed), **counts)
    return root
