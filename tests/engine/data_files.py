"""Small picture files, whole and damaged, for the tests of the data package."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

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
