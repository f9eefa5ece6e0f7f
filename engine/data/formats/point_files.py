"""Reads point clouds from .npy, .npz, .ply, .off and plain text; the content tells which it is, not the name."""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib

import numpy as np

from omnitrunk.engine.data.formats.ply import read_ply
from omnitrunk.engine.data.sample import Cloud
from omnitrunk.engine.data.verify.images import BadFile

NPY_SIGNATURE = b"\x93NUMPY"
NPY_HEADER = (
    re.compile(r"'descr': '([<>|=](?:f[248]|[iu][1248]))'"),
    re.compile(r"'fortran_order': (True|False)"),
    re.compile(r"'shape': \(([\d, ]*)\)"),
)
REFUSALS = (ValueError, IndexError, EOFError, OSError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)
"""What readers of damaged bytes raise."""


def read_points(data: bytes) -> Cloud:
    """The coordinates and labels of a cloud; BadFile where there are no coordinates, or one is not finite.

    .npy and .npz (the array "points", or the only one) hold (n, 3 or more) numbers, .ply the vertex properties x, y, z,
    .off its vertices, and text one point a line. Labels are the last column after the third; of .npz the array "parts"
    where there is one; of .ply the property "part" or "label". Other columns (normals, colors) are left out.
    """
    if not data:
        raise BadFile("empty file")
    try:
        points = _read(data)
    except REFUSALS as error:
        raise BadFile(f"damaged point cloud: {' '.join(str(error).split()) or type(error).__name__}") from None
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise BadFile(f"not a cloud of (n, 3 or more) numbers: {points.dtype} {points.shape}")
    with np.errstate(over="ignore"):  # what overflows is not finite, and refused below
        points, labels = points[:, :3].astype(np.float32), points[:, -1] if points.shape[1] > 3 else None
    if not len(points):
        raise BadFile("a cloud without points")
    if not np.isfinite(points).all():
        raise BadFile(f"{(~np.isfinite(points)).any(axis=1).sum()} of {len(points)} points are not finite")
    return Cloud(points, labels)


def read_labels(labels: np.ndarray | None, parts: int) -> np.ndarray:
    """Labels as int64 (n,); BadFile unless there are any, all of them whole numbers from 0 to below `parts`."""
    if labels is None:
        raise BadFile("no part labels: they are the column after the coordinates, or set data.parts = 0")
    wrong = ~((labels >= 0) & (labels < parts) & (np.floor(labels) == labels))
    if wrong.any():
        raise BadFile(f"part {labels[wrong][0]:g} is none of 0..{parts - 1}: set data.parts to what the files hold")
    return labels.astype(np.int64)


def _read(data: bytes) -> np.ndarray:
    """A table (n, 3 or more): coordinates, and labels as the last column where there are more."""
    if data.startswith(NPY_SIGNATURE):
        return _read_npy(data)
    if data.startswith(b"PK\x03\x04"):
        return _read_npz(data)
    if data.startswith(b"ply"):
        return read_ply(data)
    if data.startswith(b"OFF"):
        return _read_off(data)
    return _read_text(data)


def _read_npy(data: bytes) -> np.ndarray:
    """The array as a view of `data`.

    numpy's own reader sets memory aside for whatever a damaged header claims, and evaluates the header as Python.
    """
    wide = data[6] > 1  # the version: its length of the header has four bytes instead of two
    start = 12 if wide else 10
    stop = start + int.from_bytes(data[8:start], "little")
    header = data[start:stop].decode("latin-1")
    found = [pattern.search(header) for pattern in NPY_HEADER]
    if not all(found):
        raise ValueError(f"not an array of numbers: {header.strip()[:80]}")
    kind, fortran, shape = (match[1] for match in found)
    sizes = [int(size) for size in shape.replace(" ", "").split(",") if size]
    values = np.frombuffer(data, np.dtype(kind), math.prod(sizes), stop)
    return values.reshape(sizes, order="F" if fortran == "True" else "C")


def _read_npz(data: bytes) -> np.ndarray:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        if "points.npy" in names or len(names) == 1:
            points = _read_npy(archive.read("points.npy" if "points.npy" in names else names[0]))
            if "parts.npy" not in names or "points.npy" not in names:
                return points
            return np.concatenate([points[:, :3], _read_npy(archive.read("parts.npy")).reshape(-1, 1)], axis=1)
    raise ValueError(f"arrays {', '.join(names)}, none of which is named points")


def _read_off(data: bytes) -> np.ndarray:
    """The vertices: "OFF", the three counts (in some data sets on the same line), then three numbers each."""
    words = b"\n".join(line.partition(b"#")[0] for line in data[3:].splitlines()).split()
    vertices = int(words[0])
    return _numbers(words[3 : 3 + 3 * vertices], vertices, 3)


def _read_text(data: bytes) -> np.ndarray:
    """One point a line; a first line that holds a single number is their count."""
    rows = [line.split() for line in data.replace(b",", b" ").splitlines() if line.strip()]
    if rows and len(rows[0]) == 1 and len(rows) > 1:
        rows = rows[1 : 1 + int(rows[0][0])] if int(rows[0][0]) < len(rows) else rows
    return _numbers([word for row in rows for word in row], len(rows), len(rows[0]) if rows else 3)


def _numbers(words: list[bytes], rows: int, columns: int) -> np.ndarray:
    if len(words) != rows * columns:
        raise ValueError(f"{len(words)} numbers instead of {rows} x {columns}")
    return np.array(words).astype(np.float64).reshape(rows, columns) if words else np.empty((0, 3))
