"""A log of one JSON object per line that a resumed run continues without repeating or losing a step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnitrunk.engine import durable


class JsonLines:
    """Appends objects that have a "step" to a file."""

    def __init__(self, path: Path, step: int) -> None:
        """Open `path` at `step`: what it says about later steps, or in a line cut short, is dropped first."""
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            durable.write_text(path, "".join(line for line in lines if _belongs(line, step)))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _belongs(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
