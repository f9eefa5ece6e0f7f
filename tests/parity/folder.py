"""A folder of recorded numbers: every .safetensors and .json file in memory, known by its content."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tests.parity.report import Precision, Report


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One file: tensors by key with the header's metadata, or a JSON object."""

    name: str
    content: dict[str, Any]
    metadata: dict[str, str]

    def header(self, key: str) -> dict[str, Any]:
        """A JSON object of the header."""
        if key not in self.metadata:
            raise ValueError(f"{self.name} has no {key!r} in its header; it does not say how it was made")
        return json.loads(self.metadata[key])


@dataclass(frozen=True, kw_only=True)
class Check:
    """A comparison that one or several files ask for."""

    files: tuple[str, ...]
    run: Callable[[Report, Precision], None]


def read_folder(folder: Path) -> list[Recorded]:
    """All files of `folder` in order of their names; ValueError when it holds none or one of them is broken."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder that holds the recorded .safetensors files")
    paths = sorted(path for path in folder.iterdir() if path.suffix in {".safetensors", ".json"})
    if not paths:
        raise ValueError(f"{folder} holds no .safetensors or .json file; nothing to compare")
    return [_read(path) for path in paths]


def _read(path: Path) -> Recorded:
    try:
        content, metadata = _read_json(path) if path.suffix == ".json" else _read_tensors(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    return Recorded(name=path.stem, content=content, metadata=metadata)


def _read_json(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    document = json.loads(path.read_text())
    return document if isinstance(document, dict) else {}, {}


def _read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
