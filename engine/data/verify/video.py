"""Is this a whole video, and can it be decoded here? Answered from the headers of its container."""

from __future__ import annotations

import struct

import torch

from omnitrunk.engine.data.formats import matroska, riff
from omnitrunk.engine.data.formats.mp4 import is_mp4, read_mp4
from omnitrunk.engine.data.sample import Clip
from omnitrunk.engine.data.verify.images import BadFile

CODECS = {
    "cpu": frozenset({"VP8", "VP9", "MJPEG"}),
    "cuda": frozenset({"VP8", "VP9", "MJPEG", "H.264", "HEVC", "AV1", "MPEG-4"}),
}
"""What DALI decodes on each type of device."""
RE_ENCODE = "ffmpeg -i IN -c:v libvpx-vp9 -crf 32 -b:v 0 -an OUT.webm"
AVI_NESTS = frozenset({b"AVI ", b"hdrl", b"strl"})
AVI_CODECS = {
    **dict.fromkeys(("MJPG", "AVRN", "DMB1"), "MJPEG"),
    **dict.fromkeys(("H264", "X264", "AVC1", "DAVC"), "H.264"),
    **dict.fromkeys(("HEVC", "H265", "HVC1"), "HEVC"),
    **dict.fromkeys(("XVID", "DIVX", "DX50", "FMP4", "MP4V"), "MPEG-4"),
    "AV01": "AV1",
    "VP80": "VP8",
    "VP90": "VP9",
}
_FRAMES = struct.Struct("<I")
_SIZE = struct.Struct("<ii")


def verify_video(data: bytes, device: torch.device | str | None = None, *, least_frames: int = 1) -> Clip:
    """What the container says, or BadFile; with `device`, also where its decoder does not know the codec."""
    if not data:
        raise BadFile("empty file")
    try:
        clip = _read(data)
    except (IndexError, struct.error):
        raise BadFile(f"truncated: the {len(data)} bytes end inside a header") from None
    if device is not None and clip.codec not in CODECS[torch.device(device).type]:
        place = torch.device(device).type
        way = f"train on a GPU, or re-encode it: {RE_ENCODE}" if clip.codec in CODECS["cuda"] else RE_ENCODE
        raise BadFile(f"{clip.codec} video cannot be decoded on {place}; {way}")
    if min(clip.frames, clip.height, clip.width) < 1:
        raise BadFile(f"{clip.frames} video frames of {clip.height}x{clip.width} pixels")
    if clip.frames < least_frames:
        raise BadFile(
            f"{clip.frames} video frames are too few for {least_frames} segments: lower data.frames, or set "
            "data.repeat_frames = true, which shows some of them again"
        )
    return clip


def _read(data: bytes) -> Clip:
    if data.startswith(matroska.SIGNATURE):
        return matroska.read_matroska(data)
    if data.startswith(riff.SIGNATURE) and data[8:12] == b"AVI ":
        return _read_avi(data)
    if is_mp4(data):
        return read_mp4(data)
    raise BadFile(f"not a WebM, Matroska, MP4 or AVI file: it begins with {data[:4].hex(' ')}")


def _read_avi(data: bytes) -> Clip:
    """The first video stream: its header (strh), then its format (strf), a bitmap header."""
    frames = None
    for name, start, _ in riff.chunks(data, AVI_NESTS):
        if name == b"strh" and data[start : start + 4] == b"vids":
            (frames,) = _FRAMES.unpack_from(data, start + 32)
        elif name == b"strf" and frames is not None:
            width, height = _SIZE.unpack_from(data, start + 4)
            code = data[start + 16 : start + 20].decode("latin-1").upper()
            return Clip(frames, abs(height), width, AVI_CODECS.get(code, code))
    raise BadFile("AVI file without a video stream")
