"""Is this a whole recording? Answered from headers, lengths and checksums, without decoding a sample.

Formats: RIFF/WAVE (Microsoft and IBM, 1991; extensible, 2001), FLAC (RFC 9639), Ogg (RFC 3533).
"""

from __future__ import annotations

import struct

from omnitrunk.engine.data.formats import flac, ogg, riff
from omnitrunk.engine.data.sample import Sound
from omnitrunk.engine.data.verify.images import BadFile

LINEAR = {1: "integer PCM", 3: "float", 6: "A-law", 7: "mu-law"}
"""WAV formats in which every sample takes the same space."""
EXTENSIBLE = 0xFFFE
_FORMAT = struct.Struct("<HHIIHH")
_SUBFORMAT = struct.Struct("<H")


def verify_audio(data: bytes) -> Sound:
    """Length and rate of a WAV, FLAC or Ogg (Vorbis, Opus) recording, or BadFile."""
    if not data:
        raise BadFile("empty file")
    try:
        sound = _read(data)
    except (IndexError, struct.error):
        raise BadFile(f"truncated: the {len(data)} bytes end inside a header") from None
    if sound.samples < 1 or sound.rate < 1:
        raise BadFile(f"{sound.samples} samples at {sound.rate} Hz")
    return sound


def _read(data: bytes) -> Sound:
    if data.startswith(riff.SIGNATURE) and data[8:12] == b"WAVE":
        return _read_wav(data)
    if data.startswith(flac.SIGNATURE):
        return flac.read_flac(data)
    if data.startswith(ogg.SIGNATURE):
        return ogg.read_ogg(data)
    raise BadFile(f"not a WAV, FLAC or Ogg file: it begins with {data[:4].hex(' ')}")


def _read_wav(data: bytes) -> Sound:
    rate = block = 0
    for name, start, end in riff.chunks(data, frozenset({b"WAVE"})):
        if name == b"fmt ":
            tag, _, rate, _, block, _ = _FORMAT.unpack_from(data, start)
            tag = _SUBFORMAT.unpack_from(data, start + 24)[0] if tag == EXTENSIBLE else tag
            if tag not in LINEAR:
                raise BadFile(f"WAV format {tag:#06x}: ffmpeg -i IN -c:a flac OUT.flac converts it")
        elif name == b"data" and block:
            return Sound((end - start) // block, rate)
    raise BadFile("damaged WAV: no samples after a format")
