from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from omnitrunk.engine.data import DataConfig, evaluation_batches, idle_fields
from omnitrunk.engine.data.decode.augment import MOVING, OPERATIONS, RandAugment
from omnitrunk.engine.data.decode.crop import Crop
from omnitrunk.engine.data.decode.disparity import Disparity
from omnitrunk.engine.data.decode.images import ImageDecoder
from omnitrunk.engine.data.decode.jitter import ColorJitter
from omnitrunk.engine.data.sample import EncodedSample, Picture
from tests.engine.data_files import check_resume, encode, encode_video, smooth, take_batches, write_modality

SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Told(ColorJitter):
    """The same change for every row."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    def draw(self, positions):
        names = ("brightness", "contrast", "saturation", "hue")
        return {name: np.full(len(positions), getattr(self, name), dtype=np.float32) for name in names}


@dataclass(frozen=True, kw_only=True)
class Operation(RandAugment):
    """Operation p for the sample at position p, all of one magnitude."""

    def draw(self, positions):
        found = {"operation": positions, "magnitude": 0 * positions + 70, "negative": positions % 2}
        return {name: values[:, None].astype(np.int32) for name, values in found.items()}


def whole(heights, widths, positions):
    shape = np.stack([heights, widths], axis=1)
    return Crop(np.zeros_like(shape), shape, np.zeros(len(positions), dtype=np.int32))


def decode(columns, augment, strides, **options):
    pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
    samples = list(zip(*columns, strict=True))
    options |= {"size": SIZE, "batch": len(samples), "threads": 1, "device": "cpu", "augment": augment}
    decoder = ImageDecoder(strides, whole, **options)
    facts = [Picture(SIZE, SIZE)] * len(columns)
    decoder.submit([EncodedSample(row, row, 0, [encode(image) for image in s], facts) for row, s in enumerate(samples)])
    return {name: tensor.double().numpy() for name, tensor in decoder.collect().items()}


@pytest.fixture
def pictures(seed):
    rng = np.random.default_rng(seed)
    return [smooth(rng, SIZE, SIZE, 3) for _ in range(4)]


def test_factors_do_what_their_names_say(pictures):
    own = np.stack(pictures).astype(float)
    options = {"strength": 0.4, "seed": 0}
    brighter = decode([pictures], Told(**options, brightness=1.3), {"rgb": 1})["rgb"]
    assert np.abs(brighter - (1.3 * own).clip(0, 255)).max() <= 1
    duller = decode([pictures], Told(**options, contrast=0.6), {"rgb": 1})["rgb"]
    assert np.abs(duller - (128 + 0.6 * (own - 128))).max() <= 1
    grey = decode([pictures], Told(**options, saturation=0.0), {"rgb": 1})["rgb"]
    assert np.abs(grey - (own @ [0.299, 0.587, 0.114])[..., None]).max() <= 2
    turned = decode([pictures], Told(**options, hue=120.0), {"rgb": 1})["rgb"]
    red = decode(
        [[np.tile(np.array([200, 60, 60], np.uint8), (SIZE, SIZE, 1))]], Told(**options, hue=120.0), {"rgb": 1}
    )
    assert np.abs(turned - own).mean() > 5 and red["rgb"].mean(axis=(0, 1, 2)).argmax() == 1
    assert np.array_equal(decode([pictures], Told(**options), {"rgb": 1})["rgb"], own)


def test_draws_belong_to_positions_and_fill_their_ranges(seed):
    positions = np.arange(8000)
    drawn = ColorJitter(strength=0.4, seed=seed).draw(positions)
    later = ColorJitter(strength=0.4, seed=seed).draw(positions[3000:])
    assert all(np.array_equal(values[3000:], later[name]) for name, values in drawn.items())
    hue = drawn.pop("hue") / 360
    for values in (*drawn.values(), 1 + hue):
        assert abs(values.min() - 0.6) < 0.002 and abs(values.max() - 1.4) < 0.002 and abs(values.mean() - 1) < 0.015
    assert np.abs(np.corrcoef([*drawn.values(), hue]) - np.eye(4)).max() < 0.06
    strongest = ColorJitter(strength=1.0, seed=seed).draw(positions)
    assert np.abs(strongest["hue"]).max() <= 180 and strongest["contrast"].min() >= 0


def test_frames_of_a_clip_are_tinted_alike_depth_never_and_evaluation_neither(tmp_path, pictures, seed):
    pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
    pytest.importorskip("av", reason='needs PyAV: pip install "omnitrunk[world]"')
    write_modality(tmp_path, "train", "video", ".webm", [encode_video(np.stack([image] * 8)) for image in pictures])
    config = DataConfig(root=str(tmp_path), batch=4, size=SIZE, frames=4, frame_stride=2, flip=False, threads=1)
    config = replace(config, crop_area=(1.0, 1.0), val_split="train")
    plain, tinted = (
        take_batches(1, replace(config, color_jitter=strength), "video", seed)[0].tensors["video"].float()
        for strength in (0.0, 0.6)
    )
    assert (tinted.amax(1) - tinted.amin(1)).mean() < 4 < (tinted - plain).abs().mean()
    views = [
        next(iter(evaluation_batches(replace(config, color_jitter=strength), "train", ("video",), 4)))
        for strength in (0.0, 0.6)
    ]
    assert torch.equal(views[0].tensors["video"], views[1].tensors["video"])
    depths = [image[..., :1].astype(np.uint16)[..., 0] * 257 for image in pictures]
    jitter = ColorJitter(strength=1.0, seed=seed)
    found = decode([pictures, depths], jitter, {"rgb": 1, "depth": 1})
    assert np.abs(found["depth"][..., 0] * 65536 - np.stack(depths)).max() < 1
    assert np.abs(found["rgb"] - np.stack(pictures)).mean() > 2
    assert np.array_equal(decode([depths], jitter, {"depth": 1})["depth"], found["depth"])


def test_a_run_is_the_same_when_resumed_on_other_threads_and_over_ranks(tmp_path, pictures, seed):
    pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
    write_modality(tmp_path, "train", "rgb", ".png", [encode(picture) for picture in pictures])
    config = DataConfig(root=str(tmp_path), batch=4, size=SIZE, color_jitter=0.4, threads=2)
    check_resume(config, "rgb", seed)


@pytest.mark.parametrize("rule", [None, Disparity(unit=0.0001, baseline=0.075, focal=500.0)])
def test_depth_is_moved_with_its_picture_and_its_values_stay(seed, rule):
    picture = smooth(np.random.default_rng(seed), SIZE, SIZE, 3)
    depth = picture[..., 0].astype(np.uint16) * 100 + 10_000
    columns = [[picture] * len(OPERATIONS), [depth] * len(OPERATIONS)]
    augment = Operation(operations=1, magnitude=7, size=SIZE, seed=0)
    found = decode(columns, augment, {"rgb": 1, "depth": 1}, disparity=rule)
    for operation, (rgb, moved) in zip(OPERATIONS, zip(found["rgb"], found["depth"], strict=True), strict=True):
        if operation not in MOVING:
            assert np.array_equal(moved, found["depth"][0]), operation
            continue
        assert np.abs(moved - found["depth"][0]).mean() > 1e-3, operation
        # What comes in is grey in the picture; the rest of the map is what the red of the picture says.
        fill = rule.farthest if rule else 0.0
        inside = np.abs(moved[..., 0] - fill) > 1e-6
        red = rgb[..., 0] * 100 + 10_000
        steps = 0.075 * 500 / (75 * moved[..., 0].clip(1e-9)) / 0.0001 if rule else moved[..., 0] * 65536
        core = inside & np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1) & np.roll(inside, -1, 1)
        assert core.sum() > 300 and (~inside).sum() > 10, operation
        assert np.median(np.abs(steps - red)[core]) < 150, operation


def test_options_without_effect_are_named_and_mistakes_are_one_line():
    config = DataConfig(color_jitter=0.4)
    assert "color_jitter" not in {**idle_fields(config, ["rgb", "depth"]), **idle_fields(config, ["video"])}
    assert "color_jitter" in idle_fields(config, ["depth"]) and "color_jitter" in idle_fields(config, ["audio"])
    for strength in (-0.1, 1.5):
        with pytest.raises(ValueError, match=r"^data\.color_jitter is .*: use a strength from 0 to 1"):
            DataConfig(color_jitter=strength)
