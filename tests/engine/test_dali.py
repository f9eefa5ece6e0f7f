from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from omnitrunk.engine.data.decode.crop import Crop, random_crop
from omnitrunk.engine.data.decode.decoder import UndecodableRows
from omnitrunk.engine.data.decode.images import ImageDecoder
from omnitrunk.engine.data.sample import EncodedSample, Picture
from omnitrunk.engine.data.verify.images import palette_to_grey
from tests.engine.data_files import encode, palette_png, sample_files, smooth, undecodable_jpeg, undecodable_png

pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')

STRIDES = {"rgb": 1, "depth": 1, "semseg": 4}
SIZE = 32
# DALI reads its filters from a table. On white noise over the full range that costs at most 0.001.
TOLERANCE = 0.002


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def image_decoder(strides, crop, *, batch, threads=2, device="cpu"):
    """A decoder that cuts the sample at position p by row p of `crop`."""
    return ImageDecoder(
        strides,
        lambda _heights, _widths, positions: Crop(*(part[positions] for part in crop)),
        size=SIZE,
        batch=batch,
        threads=threads,
        device=device,
    )


def encoded(files):
    return [EncodedSample(row, row, 0, sample, [Picture(1, 1)] * len(sample)) for row, sample in enumerate(files)]


def decode(strides, files, crop, device="cpu"):
    decoder = image_decoder(strides, crop, batch=len(files), device=device)
    decoder.submit(encoded(files))
    return {name: tensor.cpu().numpy() for name, tensor in decoder.collect().items()}


def random_crops(rng, pictures, seed, area=(0.1, 1.0)):
    heights, widths = np.array([picture.shape[:2] for picture in pictures], dtype=np.int64).T
    return random_crop(heights, widths, rng.integers(0, 10**6, len(pictures)), seed=seed, area=area, flip=True)


def cut(picture, crop, row):
    (top, left), (height, width) = crop.anchor[row], crop.shape[row]
    return picture[top : top + height, left : left + width]


def cubic_matrix(length, size):
    """The weights, float64 (size, length), of Keys' cubic filter (a = -0.5), widened to shrink, edges repeated."""
    scale = length / size
    width = max(scale, 1.0)
    center = (np.arange(size)[:, None] + 0.5) * scale
    reach = int(2 * width) + 2
    sources = np.floor(center).astype(int) + np.arange(-reach, reach + 1)
    x = np.abs((sources + 0.5 - center) / width)
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    matrix = np.zeros((size, length))
    np.add.at(matrix, (np.arange(size)[:, None], sources.clip(0, length - 1)), weights)
    return matrix / matrix.sum(axis=1, keepdims=True)


def cubic(picture, flip):
    """float64 (SIZE, SIZE, C) of a float64 (height, width, C) picture."""
    rows, columns = (cubic_matrix(length, SIZE) for length in picture.shape[:2])
    resized = np.einsum("yh,hwc,xw->yxc", rows, picture, columns)
    return resized[:, ::-1] if flip else resized


def nearest_twice(ids, flip, stride):
    first = Image.fromarray(ids).resize((SIZE, SIZE), Image.NEAREST)
    first = first.transpose(Image.FLIP_LEFT_RIGHT) if flip else first
    return np.asarray(first.resize((SIZE // stride, SIZE // stride), Image.NEAREST))


def test_pictures_are_cut_resized_and_mirrored_as_computed_in_float64(rng, seed):
    shapes = rng.integers(20, 130, (12, 2)).tolist()
    pictures = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in shapes]
    depths = [rng.integers(0, 65536, (h, w), dtype=np.uint16) for h, w in shapes]
    crop = random_crops(rng, pictures, seed)
    files = [[encode(picture), encode(depth)] for picture, depth in zip(pictures, depths, strict=True)]
    found = decode({"rgb": 1, "depth": 1}, files, crop)
    assert found["rgb"].dtype == np.uint8 and found["depth"].dtype == np.float32
    for row in range(12):
        rgb = cubic(cut(pictures[row], crop, row) / 255, crop.flip[row]).clip(0, 1)
        assert np.abs(found["rgb"][row] / 255 - rgb).max() < TOLERANCE + 0.5 / 255
        depth = cubic(cut(depths[row][..., None], crop, row) / 65536, crop.flip[row])
        assert np.abs(found["depth"][row] - depth).max() < TOLERANCE


def test_class_ids_are_picked_by_two_nearest_resizes_and_never_mixed(rng, seed):
    ids = np.array([0, 1, 37, 200, 255], dtype=np.uint8)
    maps = [ids[rng.integers(0, 5, rng.integers(20, 130, 2))] for _ in range(12)]
    crop = random_crops(rng, maps, seed)
    found = decode({"semseg": 4}, [[encode(picture)] for picture in maps], crop)["semseg"]
    assert found.dtype == np.uint8 and found.shape == (12, SIZE // 4, SIZE // 4)
    assert set(np.unique(found)) <= set(ids.tolist())
    for row in range(12):
        assert np.array_equal(found[row], nearest_twice(cut(maps[row], crop, row), crop.flip[row], 4))


def test_one_picture_gives_one_crop_in_every_modality(rng, seed):
    pictures = [smooth(rng, *rng.integers(40, 130, 2)) for _ in range(8)]
    crop = random_crops(rng, pictures, seed)
    files = [[encode(np.stack([p] * 3, -1)), encode(p.astype(np.uint16) * 257), encode(p)] for p in pictures]
    found = decode(STRIDES, files, crop)
    rgb, depth = found["rgb"] / 255, found["depth"] * 65536 / 65535
    assert np.abs(rgb - depth).max() < TOLERANCE + 1 / 255
    # Nearest picks a pixel within half a pixel of where cubic interpolates; smooth pictures change little there.
    picked = rgb[:, 2::4, 2::4, 0]
    error = np.abs(found["semseg"] / 255 - picked).mean()
    mirrored = np.abs(found["semseg"][:, :, ::-1] / 255 - picked).mean()
    assert error < 0.03 < mirrored


def test_mirroring_only_mirrors(rng, seed):
    samples = [list(sample_files(rng).values()) for _ in range(4)]
    crop = random_crops(rng, [np.zeros((48, 64))] * 4, seed)
    plain = decode(STRIDES, samples, crop._replace(flip=np.zeros(4, np.int32)))
    mirrored = decode(STRIDES, samples, crop._replace(flip=np.ones(4, np.int32)))
    for name in ("rgb", "depth"):
        assert np.array_equal(mirrored[name], plain[name][:, :, ::-1])


def test_a_modality_does_not_depend_on_the_others_or_on_the_batch(rng, seed):
    samples = [list(sample_files(rng).values()) for _ in range(6)]
    crop = random_crops(rng, [np.zeros((48, 64))] * 6, seed)
    together = decode(STRIDES, samples, crop)
    for column, (name, stride) in enumerate(STRIDES.items()):
        alone = decode({name: stride}, [[files[column]] for files in samples[2:4]], Crop(*(part[2:4] for part in crop)))
        assert np.array_equal(alone[name], together[name][2:4])


def test_palette_maps_decode_to_their_ids(rng, seed):
    ids = rng.integers(0, 256, (40, 40), dtype=np.uint8)
    colored = palette_to_grey(palette_png(ids, rng.integers(0, 256, (256, 3), dtype=np.uint8)))
    crop = random_crops(rng, [ids, ids], seed)
    found = decode({"semseg": 4}, [[colored], [encode(ids)]], Crop(*(part[[0, 0]] for part in crop)))["semseg"]
    assert np.array_equal(found[0], found[1])


def test_pictures_of_one_two_and_four_channels_become_rgb(rng, seed):
    pixels = rng.integers(0, 256, (40, 40, 4), dtype=np.uint8)
    images = [Image.fromarray(pixels), Image.fromarray(pixels[..., 0]), Image.fromarray(pixels[..., :2], "LA")]
    files = [encode(image) for image in [*images, Image.fromarray(pixels).convert("RGB").quantize(40)]]
    files.append(encode(Image.fromarray(pixels, "CMYK"), "JPEG", quality=95))
    crop = random_crops(rng, [pixels] * len(files), seed)
    found = decode({"rgb": 1}, [[file] for file in files], crop)["rgb"]
    own = [encode(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    expected = decode({"rgb": 1}, [[file] for file in own], crop)["rgb"]
    assert found.shape == (5, SIZE, SIZE, 3)
    assert np.array_equal(found[:4], expected[:4]) and np.abs(found[4].astype(int) - expected[4]).max() < 4


def test_a_rotation_tag_is_not_applied(rng, seed):
    picture = smooth(rng, 40, 60, 3)
    tag = Image.Exif()
    tag[0x0112] = 6
    crop = random_crops(rng, [picture, picture], seed)
    files = [[encode(picture, "JPEG")], [encode(picture, "JPEG", exif=tag)]]
    found = decode({"rgb": 1}, files, Crop(*(part[[0, 0]] for part in crop)))["rgb"]
    assert np.array_equal(found[0], found[1])


def test_undecodable_samples_are_named_and_the_decoder_goes_on(rng, seed):
    samples = [sample_files(rng) for _ in range(8)]
    crop = random_crops(rng, [np.zeros((48, 64))] * 8, seed)
    damaged = [dict(sample) for sample in samples]
    damaged[1]["rgb"] = undecodable_jpeg(damaged[1]["rgb"])
    damaged[4]["depth"] = undecodable_png(damaged[4]["depth"])
    damaged[7]["semseg"] = undecodable_png(damaged[7]["semseg"])
    decoder = image_decoder(STRIDES, crop, batch=8)
    for _ in range(2):
        decoder.submit(encoded([list(sample.values()) for sample in damaged]))
        with pytest.raises(UndecodableRows) as error:
            decoder.collect()
        assert {row: modality for row, (modality, _) in error.value.rows.items()} == {1: "rgb", 4: "depth", 7: "semseg"}
        decoder.submit(encoded([list(sample.values()) for sample in samples]))
        found = decoder.collect()
    expected = decode(STRIDES, [list(sample.values()) for sample in samples], crop)
    assert all(np.array_equal(found[name], expected[name]) for name in STRIDES)


def test_batches_stay_as_they_were_when_more_are_decoded(rng, seed):
    decoder = image_decoder(STRIDES, random_crops(rng, [np.zeros((48, 64))] * 4, seed), batch=4)
    kept = []
    for step in range(8):
        samples = [list(sample_files(rng).values()) for _ in range(4 if step % 3 else 2)]
        decoder.submit(encoded(samples))
        tensors = decoder.collect()
        kept.append((tensors, {name: tensor.clone() for name, tensor in tensors.items()}))
    del decoder
    for tensors, copies in kept:
        assert all(torch.equal(tensors[name], copies[name]) for name in STRIDES)


def test_without_dali_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ValueError, match=r'pip install "omnitrunk\[data\]", or .* --data\.source random') as error:
        image_decoder({"rgb": 1}, None, batch=1)
    assert "\n" not in str(error.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_agrees_with_the_cpu(rng, seed):
    samples = [list(sample_files(rng, 90, 120).values()) for _ in range(6)]
    crop = random_crops(rng, [np.zeros((90, 120))] * 6, seed)
    cpu, gpu = (decode(STRIDES, samples, crop, device) for device in ("cpu", "cuda"))
    assert np.array_equal(cpu["semseg"], gpu["semseg"])
    assert np.abs(cpu["depth"] - gpu["depth"]).max() < TOLERANCE
    # JPEG decoders differ in how they enlarge the color planes.
    assert np.abs(cpu["rgb"].astype(int) - gpu["rgb"]).mean() < 2
