"""Length of a FLAC file (RFC 9639), and whether its frames are whole and all there.

Frames have no length, but each header tells which samples it holds, and each frame ends in a checksum. Decoders hand
out silence for a frame whose checksum is wrong, so that is found here.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from omnitrunk.engine.data.sample import Sound
from omnitrunk.engine.data.verify.images import BadFile

SIGNATURE = b"fLaC"
STREAM_INFORMATION = 34
"""Bytes of the first block of metadata."""
BLOCK_SIZES = {1: 192, **{2 + k: 576 << k for k in range(4)}, **{8 + k: 256 << k for k in range(8)}}
"""Code in a frame header -> samples of each channel; codes 6 and 7 stand for a number at the end of the header."""
HEADER_POLYNOMIAL, FRAME_POLYNOMIAL = 0x07, 0x8005


def read_flac(data: bytes) -> Sound:
    """Length and rate; BadFile where frames are damaged, or end before the length that the file begins with."""
    if data[4] & 0x7F or int.from_bytes(data[5:8], "big") != STREAM_INFORMATION:
        raise BadFile("damaged FLAC: no stream information")
    packed = int.from_bytes(data[18:26], "big")  # rate: 20 bits, channels: 3, bits per sample: 5, samples: 36
    sound = Sound(packed & (1 << 36) - 1, packed >> 44)
    if not sound.samples:
        raise BadFile("FLAC of unknown length, a live recording: ffmpeg -i IN -c:a flac OUT.flac adds it")
    first = _skip_metadata(data)
    sync = data[first : first + 2]
    if len(sync) < 2 or sync[0] != 0xFF or sync[1] & 0xFE != 0xF8:
        raise BadFile(f"damaged FLAC: no frame at byte {first}")
    block = int.from_bytes(data[8:10], "big")
    # A frame with its checksum leaves a remainder of 0, and so do any number of them.
    if frames_crc(data[first:]):
        raise BadFile(f"damaged or truncated FLAC: wrong checksum of the frames in {len(data)} bytes")
    stop = len(data)
    while (at := data.rfind(sync, first, stop)) >= 0:
        # Sound can look like a header by chance, so one that tells of other samples proves nothing.
        if _end(data[at : at + 16], block) == sound.samples:
            return sound
        stop = at + 1
    raise BadFile(f"truncated FLAC: {len(data)} bytes without the last of {sound.samples} samples")


def _skip_metadata(data: bytes) -> int:
    """Where the first frame begins."""
    at, last = len(SIGNATURE), False
    while not last:
        last = bool(data[at] & 0x80)
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    return at


def _end(header: bytes, block: int) -> int:
    """The sample after the frame that begins with `header`; 0 where that is no header."""
    if len(header) < 6:
        return 0
    number, at = _number(header)
    size_code, rate_code = header[2] >> 4, header[2] & 15
    size_bytes = {6: 1, 7: 2}.get(size_code, 0)
    size = 1 + int.from_bytes(header[at : at + size_bytes], "big") if size_bytes else BLOCK_SIZES.get(size_code, 0)
    stop = at + size_bytes + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if not size or stop >= len(header) or _header_crc(header[:stop]) != header[stop]:
        return 0
    variable = header[1] & 1  # then frames are counted in samples, else in frames of one size
    return (number if variable else number * block) + size


def _number(header: bytes) -> tuple[int, int]:
    """The number after four bytes, written as UTF-8 writes a character, and where it ends."""
    lead = header[4]
    more = max(7 - (lead ^ 0xFF).bit_length(), 0) if lead & 0x80 else 0
    value = lead & (0x7F >> more + 1 if more else 0x7F)
    for byte in header[5 : 5 + more]:
        value = value << 6 | byte & 0x3F
    return value, 5 + more


def _header_crc(header: bytes) -> int:
    crc = 0
    for byte in header:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ HEADER_POLYNOMIAL if crc & 0x80 else crc << 1) & 0xFF
    return crc


def frames_crc(data: bytes) -> int:
    """The CRC-16 of FLAC's frames. A byte at a time is slow in Python, so remainders of neighbors are joined in pairs.

    The remainder of two pieces, one after the other, is that of the second plus that of the first carried on over as
    many zero bytes as the second has. Zeros in front change nothing.
    """
    remainders = _carried(0)[::256][np.frombuffer(data, np.uint8)]
    level = 0
    while len(remainders) > 1:
        if len(remainders) % 2:
            remainders = np.concatenate([np.zeros(1, np.uint16), remainders])
        remainders = _carried(level)[remainders[0::2]] ^ remainders[1::2]
        level += 1
    return int(remainders[0]) if len(remainders) else 0


@cache
def _carried(level: int) -> np.ndarray:
    """What every remainder, uint16 (65536,), becomes after 2^level zero bytes."""
    if level:
        half = _carried(level - 1)
        return half[half]
    states = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(8):
        states = (states << 1 ^ np.where(states & 0x8000, FRAME_POLYNOMIAL, 0)) & 0xFFFF
    return states.astype(np.uint16)
