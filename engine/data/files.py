"""Bytes off the disk, and the file names that each modality takes."""

from __future__ import annotations

import os

SUFFIXES = {
    "rgb": (".jpg", ".jpeg", ".png"),
    "depth": (".png",),
    "semseg": (".png",),
    "video": (".webm", ".mkv", ".mp4", ".m4v", ".mov", ".avi"),
    "audio": (".wav", ".flac", ".ogg", ".oga", ".opus"),
    "points": (".npy", ".npz", ".ply", ".off", ".pts", ".xyz"),
    "intrinsics": (".txt",),
}
"""Modality -> the file names it takes, in any case; other files beside them are ignored."""


def read_file(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """`size` bytes from `offset`, or up to the end of the file; fewer where it ends before.

    Plain system calls: file objects cost as much again as reading a small picture.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(handle).st_size - offset if size is None else size
        data = os.pread(handle, size, offset)
        while 0 < len(data) < size and (more := os.pread(handle, size - len(data), offset + len(data))):
            data += more  # a network file system may hand out less than was asked for
        return data
    finally:
        os.close(handle)


def check_readable(modality: str) -> None:
    """ValueError for a modality that is in no kind of file."""
    if modality not in SUFFIXES:
        raise ValueError(f"{modality} cannot be read from files; readable: {', '.join(SUFFIXES)}")
