"""Reads the vertices of a PLY file (Turk, "The PLY polygon file format", 1994), as text or binary."""

from __future__ import annotations

import numpy as np

TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
BYTE_ORDER = {"binary_little_endian": "<", "binary_big_endian": ">"}
HEADER_END = b"end_header"
LABELS = ("part", "label")
"""Names of the vertex property that tells the part."""


def read_ply(data: bytes) -> np.ndarray:
    """x, y, z of every vertex, and its part where it has one: float64 (n, 3) or (n, 4).

    The vertices must be the first element, as every writer has it.
    """
    stop = data.find(HEADER_END)
    start = data.find(b"\n", stop) + 1
    if stop < 0 or not start:
        raise ValueError("a PLY header without an end")
    layout, count, fields = _header(data[:stop].decode("ascii"))
    names = [name for name, _ in fields]
    columns = [*"xyz", *[name for name in LABELS if name in names][:1]]
    places = [names.index(name) for name in columns]
    if layout == "ascii":
        words = data[start:].split()[: count * len(fields)]
        if len(words) < count * len(fields):
            raise ValueError(f"{len(words)} numbers for {count} vertices of {len(fields)} properties")
        return np.array(words).astype(np.float64).reshape(count, len(fields))[:, places]
    if layout not in BYTE_ORDER:
        raise ValueError(f"PLY format {layout}")
    record = np.dtype([(name, BYTE_ORDER[layout] + kind) for name, kind in fields])
    vertices = np.frombuffer(data, record, count, start)
    return np.stack([vertices[name].astype(np.float64) for name in columns], axis=1)


def _header(text: str) -> tuple[str, int, list[tuple[str, str]]]:
    """Format, number of vertices, and (name, type) of their properties."""
    layout, elements, fields, count = "", 0, [], 0
    for words in (line.split() for line in text.splitlines()):
        if words[:1] == ["format"]:
            layout = words[1]
        elif words[:1] == ["element"]:
            elements += 1
            if elements == 1 and words[1] != "vertex":
                raise ValueError(f"a PLY file that begins with element {words[1]} and not with vertex")
            count = int(words[2]) if elements == 1 else count
        elif words[:1] == ["property"] and elements == 1:
            if words[1] not in TYPES:
                raise ValueError(f"a vertex property of type {words[1]}")
            fields.append((words[2], TYPES[words[1]]))
    return layout, count, fields
