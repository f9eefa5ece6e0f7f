"""What an MP4 or QuickTime file says about its video track, read from box headers without decoding a frame.

Format: ISO/IEC 14496-12. A box is a length, a name of four letters and its content, which can be a nest of boxes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from omnitrunk.engine.data.sample import Clip
from omnitrunk.engine.data.verify.images import BadFile

NESTS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl"})
CODECS = {
    **dict.fromkeys((b"avc1", b"avc2", b"avc3", b"avc4"), "H.264"),
    **dict.fromkeys((b"hvc1", b"hev1"), "HEVC"),
    **dict.fromkeys((b"jpeg", b"mjpa", b"mjpb"), "MJPEG"),
    b"av01": "AV1",
    b"mp4v": "MPEG-4",
    b"vp08": "VP8",
    b"vp09": "VP9",
}
_BOX = struct.Struct(">I4s")
_LONG = struct.Struct(">Q")
_COUNT = struct.Struct(">I")
_SIZE = struct.Struct(">HH")


@dataclass
class _Track:
    video: bool = False
    codec: bytes = b""
    width: int = 0
    height: int = 0
    frames: int = 0


def is_mp4(data: bytes) -> bool:
    """Whether `data` begins like an MP4 or QuickTime file."""
    return data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def read_mp4(data: bytes) -> Clip:
    """The first video track; BadFile where the file ends inside a box."""
    tracks: list[_Track] = []
    for name, start, _ in _boxes(data):
        if name == b"trak":
            tracks.append(_Track())
        elif name == b"moof":
            raise BadFile(
                "fragmented MP4, whose frames have no table: ffmpeg -i IN -c copy -movflags faststart OUT.mp4 adds one"
            )
        elif tracks:
            _describe(tracks[-1], name, data, start)
    video = next((track for track in tracks if track.video), None)
    if video is None:
        raise BadFile("MP4 file without a video track")
    return Clip(video.frames, video.height, video.width, CODECS.get(video.codec, video.codec.decode("latin-1")))


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of every box; a nest comes before its children and has its start as its end."""
    at = 0
    while at < len(data):
        length, name = _BOX.unpack_from(data, at)
        start = at + _BOX.size
        if length == 1:  # the length did not fit into 32 bits
            (length,) = _LONG.unpack_from(data, start)
            start += _LONG.size
        end = at + length if length else len(data)  # 0: as far as the file goes
        if end > len(data):
            raise BadFile(f"truncated MP4: {len(data)} bytes of at least {end}")
        if end < start:
            raise BadFile(f"damaged MP4: no box at byte {at}")
        yield name, start, end
        at = start if name in NESTS else end


def _describe(track: _Track, name: bytes, data: bytes, start: int) -> None:
    """Takes what a box that starts at `start` tells; the offsets are those of its table in the standard."""
    # QuickTime has a second handler, of the data and not of the media, inside the same track.
    if name == b"hdlr" and data[start + 8 : start + 12] == b"vide":
        track.video = True
    elif name == b"stsd":
        track.codec = data[start + 12 : start + 16]
        track.width, track.height = _SIZE.unpack_from(data, start + 40)
    elif name == b"stsz":
        (track.frames,) = _COUNT.unpack_from(data, start + 8)
