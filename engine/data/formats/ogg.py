"""Pages of an Ogg file (RFC 3533), with their checksums, and the length of what they hold."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from omnitrunk.engine.data.sample import Sound
from omnitrunk.engine.data.verify.images import BadFile

SIGNATURE = b"OggS"
LAST_PAGE = 4
OPUS_RATE = 48_000
_HEADER = struct.Struct("<4sBBqIIIB")
_CHECKSUM = slice(22, 26)
_VORBIS_RATE = struct.Struct("<I")
_OPUS_SKIP = struct.Struct("<H")
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def read_ogg(data: bytes) -> Sound:
    """Length and rate of the Vorbis or Opus recording; BadFile where a page is damaged or the last one is missing."""
    first, granule, last = b"", 0, False
    for flags, position, content in _pages(data):
        first = first or content
        granule = position if position >= 0 else granule  # -1: no packet ends on this page
        last = bool(flags & LAST_PAGE)
    if not last:
        raise BadFile(f"truncated Ogg: {len(data)} bytes without a last page")
    if first.startswith(b"\x01vorbis"):
        return Sound(granule, _VORBIS_RATE.unpack_from(first, 12)[0])
    if first.startswith(b"OpusHead"):
        return Sound(granule - _OPUS_SKIP.unpack_from(first, 10)[0], OPUS_RATE)
    raise BadFile("neither Vorbis nor Opus: ffmpeg -i IN -c:a flac OUT.flac converts it")


def _pages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(flags, granule position, content) of every page."""
    at = 0
    while at < len(data):
        signature, _, flags, position, _, _, checksum, segments = _HEADER.unpack_from(data, at)
        start = at + _HEADER.size + segments
        end = start + sum(data[at + _HEADER.size : start])
        if signature != SIGNATURE:
            raise BadFile(f"damaged Ogg: no page at byte {at}")
        if end > len(data):
            raise BadFile(f"truncated Ogg: {len(data)} bytes of at least {end}")
        page = bytearray(data[at:end])
        page[_CHECKSUM] = bytes(4)
        if _crc(page) != checksum:
            raise BadFile(f"damaged Ogg: wrong checksum of the page at byte {at}")
        yield flags, position, data[start:end]
        at = end


def _crc(page: bytearray) -> int:
    """Ogg's CRC-32. zlib's has the same polynomial and reads bits from the other end, starting from all ones."""
    crc = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
