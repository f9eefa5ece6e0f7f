"""What a Matroska or WebM file says about its video track, read from element headers without decoding a frame.

Format: RFC 8794 (EBML) and RFC 9559 (Matroska). An element is an id, a length and that many bytes, either of which can
be a nest of elements. WebM files have one frame per block, so frames are counted by walking over the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from omnitrunk.engine.data.sample import Clip
from omnitrunk.engine.data.verify.images import BadFile

SIGNATURE = b"\x1a\x45\xdf\xa3"
SEGMENT, CLUSTER, BLOCK_GROUP, TRACKS, VIDEO = 0x18538067, 0x1F43B675, 0xA0, 0x1654AE6B, 0xE0
TRACK, NUMBER, KIND, CODEC, WIDTH, HEIGHT = 0xAE, 0xD7, 0x83, 0x86, 0xB0, 0xBA
SIMPLE_BLOCK, BLOCK = 0xA3, 0xA1
NESTS = frozenset({SEGMENT, CLUSTER, BLOCK_GROUP, TRACKS, TRACK, VIDEO})
"""Elements to look into; all others are stepped over."""
VIDEO_KIND = b"\x01"
INVISIBLE = 0x08
"""Flag of a block that is decoded and not shown: a reference picture of VP8."""
CODECS = {
    "V_VP8": "VP8",
    "V_VP9": "VP9",
    "V_AV1": "AV1",
    "V_MJPEG": "MJPEG",
    "V_MPEG4/ISO/AVC": "H.264",
    "V_MPEGH/ISO/HEVC": "HEVC",
    "V_MPEG4/ISO/SP": "MPEG-4",
    "V_MPEG4/ISO/ASP": "MPEG-4",
}


@dataclass
class _Track:
    number: int = 0
    video: bool = False
    codec: str = ""
    width: int = 0
    height: int = 0
    frames: int = 0


def read_matroska(data: bytes) -> Clip:
    """The first video track; BadFile where the file ends inside an element."""
    tracks: list[_Track] = []
    for name, start, end in _elements(data):
        if name in (SIMPLE_BLOCK, BLOCK):
            _count(data, start, tracks)
        elif name == TRACK:
            tracks.append(_Track())
        elif tracks:
            _describe(tracks[-1], name, data[start:end])
    video = next((track for track in tracks if track.video), None)
    if video is None:
        raise BadFile("Matroska file without a video track")
    return Clip(video.frames, video.height, video.width, CODECS.get(video.codec, video.codec))


def _elements(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(id, start, end) of every element; a nest comes before its children and has its start as its end."""
    at = 0
    while at < len(data):
        name, at = _name(data, at)
        length, at = _length(data, at)
        if length is not None and at + length > len(data):
            raise BadFile(f"truncated Matroska: {len(data)} bytes of at least {at + length}")
        if name in NESTS:
            yield name, at, at
            continue
        if length is None:
            raise BadFile(f"damaged Matroska: no length of the element before byte {at}")
        yield name, at, at + length
        at += length


def _name(data: bytes, at: int) -> tuple[int, int]:
    """The id of the element at `at`, its marker bits included, and where the length begins."""
    size = 9 - data[at].bit_length()
    if size > 4:
        raise BadFile(f"damaged Matroska: no element at byte {at}")
    return int.from_bytes(data[at : at + size], "big"), at + size


def _length(data: bytes, at: int) -> tuple[int | None, int]:
    """The length at `at`, None where it says unknown (a live recording), and where the content begins."""
    size = 9 - data[at].bit_length()
    if size > 8:
        raise BadFile(f"damaged Matroska: no element length at byte {at}")
    most = (1 << 7 * size) - 1
    value = int.from_bytes(data[at : at + size], "big") & most
    return (None if value == most else value), at + size


def _describe(track: _Track, name: int, content: bytes) -> None:
    if name == NUMBER:
        track.number = int.from_bytes(content, "big")
    elif name == KIND:
        track.video = content == VIDEO_KIND
    elif name == CODEC:
        track.codec = content.rstrip(b"\0").decode("latin-1")
    elif name == WIDTH:
        track.width = int.from_bytes(content, "big")
    elif name == HEIGHT:
        track.height = int.from_bytes(content, "big")


def _count(data: bytes, start: int, tracks: list[_Track]) -> None:
    number, at = _length(data, start)
    shown = not data[at + 2] & INVISIBLE  # after two bytes of time
    for track in tracks:
        track.frames += shown and track.number == number
