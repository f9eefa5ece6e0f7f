"""Chunks of a RIFF file, the container of WAV and AVI (Microsoft and IBM, Multimedia Programming Interface, 1991)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from omnitrunk.engine.data.verify.images import BadFile

SIGNATURE = b"RIFF"
_CHUNK = struct.Struct("<4sI")


def chunks(data: bytes, nests: frozenset[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of every chunk. A list is named by its type and looked into if that is one of `nests`.

    BadFile where the file ends inside a chunk.
    """
    at = 0
    while at + _CHUNK.size <= len(data):
        name, length = _CHUNK.unpack_from(data, at)
        start = at + _CHUNK.size
        end = start + length
        if end > len(data):
            raise BadFile(f"truncated: {len(data)} bytes, but chunk {name.decode('latin-1')!r} ends at {end}")
        if name in (b"RIFF", b"LIST"):
            name, start = data[start : start + 4], start + 4
        yield name, start, end
        at = start if name in nests else end + (length & 1)  # chunks begin at even bytes
