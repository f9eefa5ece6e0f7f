"""Small files of every modality, whole and damaged, for the tests of the data package."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from omnitrunk.engine.data import Loader

MODALITIES = ("rgb", "depth", "semseg")
SUFFIX = {"rgb": ".jpg", "depth": ".png", "semseg": ".png"}


def smooth(rng, height, width, channels=1):
    """Random uint8 (height, width[, channels]) without fine detail, as JPEG likes it."""
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, channels), dtype=np.uint8)
    planes = [Image.fromarray(coarse[..., c]).resize((width, height), Image.BILINEAR) for c in range(channels)]
    pixels = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return pixels if channels > 1 else pixels[..., 0]


def encode(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def palette_png(ids, colors):
    image = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
    image.putpalette(colors.tobytes())
    return encode(image)


def sample_files(rng, height=48, width=64):
    """Encoded rgb (JPEG), depth (16 bits) and semseg of one random sample."""
    return {
        "rgb": encode(smooth(rng, height, width, 3), "JPEG", quality=90),
        "depth": encode(smooth(rng, height, width).astype(np.uint16) * 257),
        "semseg": encode(smooth(rng, height, width) // 32),
    }


def write_folder(root, split, count, rng, classes=2, **size):
    """A data set of `count` samples; returns {modality: [path]} in the order of the index."""
    paths = {modality: [] for modality in MODALITIES}
    for i in range(count):
        for modality, data in sample_files(rng, **size).items():
            folder = Path(root) / split / modality / f"class{i * classes // count}"
            folder.mkdir(parents=True, exist_ok=True)
            paths[modality].append(folder / f"{i:04d}{SUFFIX[modality]}")
            paths[modality][-1].write_bytes(data)
    return paths


def chunks(png):
    """[(name, payload)] of a PNG file."""
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += length + 12
    return found


def build_png(parts):
    body = b"".join(
        struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))
        for name, payload in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def undecodable_png(png):
    """The same file with a pixel stream that no decoder accepts, and right checksums."""
    return build_png([(name, b"\xff" * len(data) if name == b"IDAT" else data) for name, data in chunks(png)])


def undecodable_jpeg(jpeg):
    """The same file without its quantization tables."""
    kept, at = [jpeg[:2]], 2
    while jpeg[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", jpeg, at + 2)
        if jpeg[at + 1] != 0xDB:
            kept.append(jpeg[at : at + 2 + length])
        at += 2 + length
    return b"".join([*kept, jpeg[at:]])


def break_samples(paths):
    """Damages the first six samples, each in another way; returns {path: part of the reason}."""
    rgb, depth, semseg = (paths[modality] for modality in MODALITIES)
    rgb[0].write_bytes(rgb[0].read_bytes()[:-100])
    semseg[1].write_bytes(b"")
    data = bytearray(depth[2].read_bytes())
    data[len(data) // 2] ^= 4
    depth[2].write_bytes(data)
    depth[3].write_bytes(encode(np.zeros((20, 20), np.uint16)))
    depth[4].write_bytes(undecodable_png(depth[4].read_bytes()))
    rgb[5].write_bytes(undecodable_jpeg(rgb[5].read_bytes()))
    return {
        str(rgb[0]): "truncated",
        str(semseg[1]): "empty",
        str(depth[2]): "checksum",
        str(depth[3]): "pixels",
        str(depth[4]): "does not decode",
        str(rgb[5]): "does not decode",
    }


def levels(frames, height=48, width=64):
    """Frames (F, height, width, 3) uint8, each of one grey of its own, from 10 up in equal steps."""
    greys = np.linspace(10, 245, frames).astype(np.uint8)
    return np.broadcast_to(greys[:, None, None, None], (frames, height, width, 3)).copy()


def encode_video(frames, codec="libvpx-vp9", container="webm", options=None):
    """A video of frames (F, H, W, 3) uint8 with any codec and container that PyAV can write."""
    import av

    target = io.BytesIO()
    with av.open(target, "w", format=container, options=options or {}) as file:
        stream = file.add_stream(codec, rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return target.getvalue()


def encode_audio(samples, rate, codec="flac", container=None, layout="mono"):
    """A recording of samples (N,) or, interleaved, (N * channels,) int16 with any codec that PyAV can write."""
    import av

    target = io.BytesIO()
    with av.open(target, "w", format=container or codec) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.thread_count = 1
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout=layout)
        frame.sample_rate = rate
        frame.pts = 0
        resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.frame_size or None)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode())
    return target.getvalue()


def encode_array(points):
    target = io.BytesIO()
    np.save(target, points)
    return target.getvalue()


def write_modality(root, split, modality, suffix, contents, classes=2):
    """One file per element of `contents`, spread over class folders; returns the paths in the order of the index."""
    paths = []
    for i, data in enumerate(contents):
        folder = Path(root) / split / modality / f"class{i * classes // len(contents)}"
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"{i:04d}{suffix}")
        paths[-1].write_bytes(data)
    return paths


def same_batch(a, b):
    """Whether two batches agree in every bit."""
    return (
        np.array_equal(a.positions, b.positions)
        and torch.equal(a.labels, b.labels)
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    )


def take_batches(steps, config, modality, seed, **options):
    with Loader(config, (modality,), seed=seed, **options) as loader:
        return [next(loader) for _ in range(steps)]


def check_resume(config, modality, seed):
    """A run of seven steps, resumed after three, on other threads and in two ranks, is the same run."""
    whole = take_batches(7, config, modality, seed)
    with Loader(config, (modality,), seed=seed) as loader:
        for _ in range(3):
            next(loader)
        seen = loader.samples_seen
    threads = replace(config, threads=1 + config.threads % 2, prefetch=1)
    resumed = take_batches(4, threads, modality, seed, samples_seen=seen)
    assert all(same_batch(a, b) for a, b in zip(whole[3:], resumed, strict=True))
    ranks = [take_batches(2, config, modality, seed, rank=rank, world=2) for rank in range(2)]
    for batch, left, right in zip(whole, *ranks, strict=False):
        for name, values in batch.tensors.items():
            assert torch.equal(values, torch.cat([left.tensors[name], right.tensors[name]]))
    assert not same_batch(take_batches(1, config, modality, seed + 1)[0], whole[0])
