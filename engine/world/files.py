"""One function per kind of file: arrays in, the bytes of an ordinary file out, the same bytes every time."""

from __future__ import annotations

import io
from types import ModuleType

import numpy as np

__all__ = ["encode_clip", "encode_gray", "encode_jpeg", "encode_points", "encode_sound"]

# Without this the WebM and FLAC writers store random ids and their own version.
REPEATABLE = {"fflags": "+bitexact"}
# libvpx at its fastest: constant quality, no look-ahead, one thread.
VP9 = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "crf": "32", "b": "0"}


def encode_jpeg(rgb: np.ndarray, quality: int = 92) -> bytes:
    """A JPEG of pixels (H, W, 3) uint8."""
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(rgb).save(target, "JPEG", quality=quality)
    return target.getvalue()


def encode_gray(values: np.ndarray) -> bytes:
    """A lossless single-channel PNG of values (H, W): 8 bit from uint8, 16 bit from uint16."""
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(values).save(target, "PNG", compress_level=6)
    return target.getvalue()


def encode_clip(frames: np.ndarray, rate: int) -> bytes:
    """A VP9 clip in WebM of frames (F, H, W, 3) uint8 with even H and W, at rate frames a second."""
    av = _av()
    target = io.BytesIO()
    with av.open(target, "w", format="webm", options=REPEATABLE) as container:
        stream = container.add_stream("libvpx-vp9", rate=rate, options=VP9)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()


def encode_sound(samples: np.ndarray, rate: int) -> bytes:
    """A mono FLAC of samples (N,) int16 at rate hertz."""
    av = _av()
    target = io.BytesIO()
    # The writer would reserve eight kilobytes for tags, more than the sound itself needs.
    options = REPEATABLE | {"metadata_header_padding": "0"}
    with av.open(target, "w", format="flac", options=options) as container:
        stream = container.add_stream("flac", rate=rate, layout="mono", format="s16")
        stream.codec_context.thread_count = 1
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


def encode_points(points: np.ndarray) -> bytes:
    """A .npy file of points (N, 4): x, y, z and the part label, stored as float32."""
    target = io.BytesIO()
    np.save(target, np.ascontiguousarray(points, dtype=np.float32))
    return target.getvalue()


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError("clips and sounds need PyAV: pip install 'omnitrunk[world]'") from error
    return av
