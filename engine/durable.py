"""Files that survive a crash: written aside, flushed to the disk, then renamed over the old name in one step."""

from __future__ import annotations

import os
from pathlib import Path

ASIDE = ".aside"
"""Suffix of a file or folder that is not finished yet."""


def aside(path: Path) -> Path:
    """Where `path` is written until it is complete."""
    return path.with_name(f".{path.name}{ASIDE}")


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`; a reader sees the old content or the new one, never a part."""
    temporary = aside(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def point(link: Path, target: str) -> None:
    """Make the symbolic link `link` point to `target`, replacing an older link in one step."""
    temporary = aside(link)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(link)
    sync(link.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
