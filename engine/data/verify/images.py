"""Are these bytes a whole picture? Answered from headers, lengths and checksums, without decoding a pixel.

A decoder in the middle of a batch can only fail the batch, so truncated and damaged files are found here, at the cost
of some microseconds per file. Formats: ITU-T T.81 annex B (JPEG) and the PNG specification, third edition.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, PALETTE = 0, 3
_HEADER = struct.Struct(">II4sIIBB")
_LENGTH = struct.Struct(">I")
_JPEG_SIZE = struct.Struct(">HBHH")
# Start-of-frame markers carry the size. C4, C8 and CC share the range and mean something else.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset(range(0xD0, 0xD8)) | {0x01}
_START_OF_SCAN = 0xDA


class BadFile(Exception):
    """A file that must not reach the decoder; the message is the reason, fit for a log line."""


def verify(data: bytes, kind: str) -> tuple[int, int]:
    """(height, width) in pixels of the encoded picture `data`, or BadFile.

    `kind` is the modality: rgb takes JPEG and PNG, depth takes 16-bit grey PNG, semseg takes PNG with one byte per
    pixel, grey or palette. A JPEG must have its end marker (anything may follow, as in padded copies and the files of
    some cameras); a PNG must pass every checksum.
    """
    if not data:
        raise BadFile("empty file")
    try:
        if data.startswith(PNG_SIGNATURE):
            return _verify_png(data, kind)
        if kind == "rgb" and data.startswith(b"\xff\xd8"):
            return _verify_jpeg(data)
    except (IndexError, struct.error):
        raise BadFile(f"truncated: the {len(data)} bytes end inside a header") from None
    raise BadFile(f"not a {'JPEG or PNG' if kind == 'rgb' else 'PNG'} file: it begins with {data[:4].hex(' ')}")


def _verify_jpeg(data: bytes) -> tuple[int, int]:
    size, at = None, 2
    while True:
        if data[at] != 0xFF:
            raise BadFile(f"damaged JPEG: no marker at byte {at}")
        while data[at] == 0xFF:  # any number of fill bytes may come before a marker
            at += 1
        marker = data[at]
        at += 1
        if marker in _STANDALONE:
            continue
        length, _, height, width = _JPEG_SIZE.unpack_from(data, at)
        if marker in _START_OF_FRAME:
            size = height, width
        elif marker == _START_OF_SCAN:
            break
        at += length
    if size is None or not all(size):
        raise BadFile("damaged JPEG: no picture size before the first scan")
    # Inside a scan every FF byte is followed by 00 or a restart marker, so the first FF D9 found is the true end.
    if not data.endswith(b"\xff\xd9") and data.rfind(b"\xff\xd9", at) < 0:
        raise BadFile(f"truncated JPEG: {len(data)} bytes without an end marker")
    return size


def _verify_png(data: bytes, kind: str) -> tuple[int, int]:
    _, length, name, width, height, bits, color = _HEADER.unpack_from(data, 4)
    if name != b"IHDR" or length != 13 or not width or not height:
        raise BadFile("damaged PNG: no valid header chunk")
    if kind == "depth" and (bits, color) != (16, GREY):
        raise BadFile(f"depth must be a 16-bit grey PNG; this one has {bits} bits, color type {color}")
    if kind == "semseg" and (bits != 8 or color not in (GREY, PALETTE)):
        raise BadFile(f"semseg must be an 8-bit grey or palette PNG; this one has {bits} bits, color type {color}")
    pixels = False
    for name, start, end in _chunks(data):
        (stored,) = _LENGTH.unpack_from(data, end)
        if zlib.crc32(memoryview(data)[start - 4 : end]) != stored:
            raise BadFile(f"damaged PNG: wrong checksum of chunk {name.decode('latin-1')!r}")
        pixels |= name == b"IDAT"
    if not pixels:
        raise BadFile("damaged PNG: no pixel data")
    return height, width


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of every chunk's payload, through IEND."""
    at, name = len(PNG_SIGNATURE), b""
    while name != b"IEND":
        (length,) = _LENGTH.unpack_from(data, at)
        name, at = data[at + 4 : at + 8], at + 8
        if at + length + 4 > len(data):
            raise BadFile(f"truncated PNG: {len(data)} bytes end inside chunk {name.decode('latin-1')!r}")
        yield name, at, at + length
        at += length + 4


def palette_to_grey(data: bytes) -> bytes:
    """A verified 8-bit palette PNG relabelled as grey, so that decoders give the stored ids and not their colors.

    Both store one byte per pixel in the same way; only the header and the color tables differ. Other files come back
    unchanged.
    """
    if data[25] != PALETTE:
        return data
    header = data[12:25] + bytes([GREY]) + data[26:29]
    parts = [PNG_SIGNATURE, data[8:12], header, _LENGTH.pack(zlib.crc32(header))]
    parts += [data[start - 8 : end + 4] for name, start, end in _chunks(data) if name in (b"IDAT", b"IEND")]
    return b"".join(parts)
