"""What a data set says about itself in ROOT/dataset.json; the file and every entry of it are optional."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omnitrunk.engine.config import RunConfig
from omnitrunk.models import MultiMAEConfig, PartSegmenterConfig


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
    if not isinstance(config.model, MultiMAEConfig):
        return
    classes = describe(config.data.root).get("semseg_classes")
    if config.data.source == "folder" and classes is not None and classes > config.model.semseg_classes:
        raise ValueError(
            f"{config.data.root} has class ids up to {classes - 1}: set model.semseg_classes = {classes}, "
            f"not {config.model.semseg_classes}"
        )


def _check_parts(root: str, model: PartSegmenterConfig) -> None:
    parts = describe(root).get("parts", {})
    if parts and (counts := tuple(len(parts[name]) for name in sorted(parts))) != model.part_counts:
        raise ValueError(f"the classes of {root} have other parts: set model.part_counts = {list(counts)}")
