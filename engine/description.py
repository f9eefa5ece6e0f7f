"""What a data set says about itself in ROOT/dataset.json; the file and every entry of it are optional."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnitrunk.models import MultiMAEConfig, OmnivoreSegmenterConfig, PartSegmenterConfig

if TYPE_CHECKING:
    from omnitrunk.engine.config import RunConfig

CLASSES = {MultiMAEConfig: "semseg_classes", OmnivoreSegmenterConfig: "classes"}
"""What says how many classes of pixels a model knows."""


def describe(root: str) -> dict[str, Any]:
    """The entries of dataset.json, none where there is no such file. ValueError if it cannot be read."""
    path = Path(root) / "dataset.json"
    if not root or not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; repair or delete it") from error


def check_description(config: RunConfig) -> None:
    """ValueError where the data set says that it does not fit the model."""
    if isinstance(config.model, PartSegmenterConfig):
        return _check_parts(config.data.root, config.model)
    if type(config.model) not in CLASSES:
        return
    name = CLASSES[type(config.model)]
    known, classes = getattr(config.model, name), describe(config.data.root).get("semseg_classes")
    if config.data.source == "folder" and classes is not None and classes > known:
        raise ValueError(
            f"{config.data.root} has class ids up to {classes - 1}: set model.{name} = {classes}, not {known}"
        )


def _check_parts(root: str, model: PartSegmenterConfig) -> None:
    parts = describe(root).get("parts", {})
    if parts and (counts := tuple(len(parts[name]) for name in sorted(parts))) != model.part_counts:
        raise ValueError(f"the classes of {root} have other parts: set model.part_counts = {list(counts)}")
