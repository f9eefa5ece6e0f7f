"""A run that takes a second: the smallest model, few pictures, a log that can be compared."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from omnitrunk.engine.config import dump, read

HAS_DALI = bool(find_spec("nvidia") and find_spec("nvidia.dali"))
needs_dali = pytest.mark.skipif(not HAS_DALI, reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')

MODEL = {
    "image_size": 32, "patch_size": 8, "width": 16, "depth": 1, "heads": 2, "decoder_width": 8, "decoder_depth": 1,
    "decoder_heads": 2, "keep": 8, "semseg_classes": 9, "class_embedding_width": 4,
}  # fmt: skip


def tiny(folder, steps=12, **sections):
    """The configuration of a run in `folder`; sections override fields, as in tiny(path, data={"batch": 4})."""
    values = {
        "run": {"folder": str(folder), "steps": steps},
        "data": {"source": "random", "batch": 8, "size": 32, "threads": 1},
        "model": MODEL,
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "checkpoint": {"every": 4},
        "log": {"every": 3, "tensorboard": False},
    }
    for section, fields in sections.items():
        values[section] = {**values.get(section, {}), **fields}
    return read(values)


def write_config(path, config):
    Path(path).write_text(dump(config), encoding="utf-8")
    return Path(path)


def log_of(config):
    """The lines of log.jsonl without what depends on the clock."""
    lines = (Path(config.run.folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        assert record.pop("time")
    return records


def weights_of(config):
    """The bytes of the newest model.safetensors, through the link that names it."""
    return (Path(config.run.folder) / "latest" / "model.safetensors").read_bytes()
