"""Where the members of a tar archive lie, from its headers alone (POSIX.1-2001 ustar and pax, and GNU's long names)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512
NAME, SIZE, CHECKSUM, KIND, MAGIC, PREFIX = (
    slice(0, 100),
    slice(124, 136),
    slice(148, 156),
    slice(156, 157),
    slice(257, 262),
    slice(345, 500),
)
"""Fields of a header."""
FILES = (b"0", b"\0", b"7")
LONG_NAME, EXTENDED = b"L", b"x"
ZEROS = bytes(BLOCK)


class Member(NamedTuple):
    """A file in an archive: its bytes are `size` from `offset`. `head` are those that were read with its header."""

    name: str
    offset: int
    size: int
    head: bytes


class DamagedArchive(Exception):
    """The archive cannot be read on from here; the message is the reason."""


def members(path: str) -> Iterator[Member]:
    """The files of an archive in their order; DamagedArchive, after those before it, where the archive is damaged.

    An archive that ends inside a member is damaged, and that member is not given; so is one without its end.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        yield from _members(handle, os.fstat(handle).st_size)
    finally:
        os.close(handle)


def _members(handle: int, total: int) -> Iterator[Member]:
    at, overrides = 0, {}
    while at < total:
        block = os.pread(handle, 2 * BLOCK, at)  # a class label is in the second half: no read of its own
        header = block[:BLOCK]
        if header == ZEROS:
            return
        if len(header) < BLOCK or not _intact(header):
            raise DamagedArchive(f"no tar header at byte {at}")
        size = _size(header, overrides)
        start = at + BLOCK
        at = start + -(-size // BLOCK) * BLOCK
        if start + size > total:
            raise DamagedArchive(f"{total} bytes of at least {start + size}")
        kind = header[KIND]
        if kind == LONG_NAME:
            overrides = overrides | {"path": _text(os.pread(handle, size, start))}
        elif kind == EXTENDED:
            overrides = overrides | _records(os.pread(handle, size, start))
        else:
            if kind in FILES:
                yield Member(overrides.get("path") or _name(header), start, size, block[BLOCK : BLOCK + size])
            overrides = {}
    raise DamagedArchive(f"{total} bytes without the blocks of zeros that end an archive")


def _size(header: bytes, overrides: dict[str, str]) -> int:
    try:
        return int(overrides["size"]) if "size" in overrides else _number(header[SIZE])
    except ValueError:
        raise DamagedArchive("a member without a size") from None


def _intact(header: bytes) -> bool:
    """Whether the checksum, the sum of all bytes with blanks in its own place, is right."""
    try:
        stored = _number(header[CHECKSUM])
    except ValueError:
        return False
    return sum(header) - sum(header[CHECKSUM]) + 8 * ord(" ") == stored


def _number(field: bytes) -> int:
    """An octal number, or a binary one if the highest bit is set (GNU, for more than 8 GiB)."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.rstrip(b"\0 ").lstrip() or b"0", 8)


def _name(header: bytes) -> str:
    prefix = _text(header[PREFIX]) if header[MAGIC] == b"ustar" and header[262:263] == b"\0" else ""
    return f"{prefix}/{_text(header[NAME])}" if prefix else _text(header[NAME])


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _records(content: bytes) -> dict[str, str]:
    """The "length key=value" lines of a pax header."""
    records, at = {}, 0
    while at < len(content):
        length, blank, _ = content[at : at + 20].partition(b" ")
        if not blank or not length.isdigit() or not int(length):
            raise DamagedArchive("an extended header without records")
        key, _, value = content[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += int(length)
    return records
