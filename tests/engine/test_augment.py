from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from omnitrunk.engine.data import DataConfig, idle_fields
from omnitrunk.engine.data.decode.augment import OPERATIONS, RandAugment
from omnitrunk.engine.data.decode.augmentation import UNCHANGED
from omnitrunk.engine.data.decode.crop import Crop
from omnitrunk.engine.data.decode.decoders import make_decoder
from omnitrunk.engine.data.decode.frames import FrameRule
from omnitrunk.engine.data.decode.images import ImageDecoder
from omnitrunk.engine.data.decode.video import VideoDecoder
from omnitrunk.engine.data.sample import Clip, EncodedSample, Picture
from tests.engine.data_files import encode, encode_video, smooth, take_batches, write_modality

SIZE, COUNT = 32, 16


@dataclass(frozen=True, kw_only=True)
class Told(RandAugment):
    """Operation p % 16 first for the sample at position p, and then inversions, all of one magnitude."""

    negative: int = 0

    def draw(self, positions):
        found = {"operation": positions % COUNT, "magnitude": 10 * self.magnitude, "negative": self.negative}
        shape = (len(positions), self.operations)
        steps = {name: np.broadcast_to(value, shape[::-1]).T.astype(np.int32) for name, value in found.items()}
        steps["operation"][:, 1:] = OPERATIONS.index("invert")
        return steps


def whole(heights, widths, positions):
    shape = np.stack([heights, widths], axis=1)
    return Crop(np.zeros_like(shape), shape, np.zeros(len(positions), dtype=np.int32))


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(np.random.SeedSequence().entropy % 2**32)
    return np.stack([smooth(rng, SIZE, SIZE, 3) for _ in range(COUNT)])


def seen(pictures, augment):
    pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
    decoder = ImageDecoder({"rgb": 1}, whole, size=SIZE, batch=len(pictures), threads=1, device="cpu", augment=augment)
    files = [encode(picture) for picture in pictures]
    decoder.submit([EncodedSample(row, row, 0, [file], [Picture(SIZE, SIZE)]) for row, file in enumerate(files)])
    return dict(zip(OPERATIONS, decoder.collect()["rgb"].numpy().astype(int), strict=True))


@pytest.mark.parametrize(("magnitude", "negative"), [(0, 0), (5, 0), (10, 1)])
def test_operations_are_those_of_their_names(pictures, magnitude, negative):
    found = seen(pictures, Told(operations=1, size=SIZE, magnitude=magnitude, seed=0, negative=negative))
    own = dict(zip(OPERATIONS, pictures.astype(int), strict=True))
    signed, level = (-magnitude if negative else magnitude) / 10, magnitude / 10
    brighter = own["brightness"] * (1 + 0.9 * signed)
    moved = round(0.45 * signed * SIZE)
    for name, expected, tolerance in [
        ("identity", own["identity"], 0),
        ("invert", 255 - own["invert"], 0),
        ("brightness", brighter.clip(0, 255), 1),
        ("solarize", np.where(own["solarize"] < 256 - 256 * level, own["solarize"], 255 - own["solarize"]), 0),
        ("solarize_add", own["solarize_add"] + int(110 * level) * (own["solarize_add"] < 128), 0),
        ("posterize", own["posterize"] & ~(2 ** round(4 * level) - 1), 0),
    ]:
        assert np.abs(found[name] - expected).max() <= tolerance, name
    rows = slice(max(moved, 0), SIZE + min(moved, 0))
    source = slice(max(-moved, 0), SIZE - max(moved, 0))
    assert np.abs(found["translate_y"][rows] - own["translate_y"][source]).mean() < 12
    if magnitude:
        for name in OPERATIONS[1:]:
            assert not np.array_equal(found[name], own[name]), name


def test_draws_belong_to_positions_and_have_their_shares(seed):
    rule, positions = RandAugment(operations=3, magnitude=9, size=SIZE, seed=seed), np.arange(4000)
    drawn, later = rule.draw(positions), rule.draw(positions[1000:])
    assert all(np.array_equal(values[1000:], later[name]) for name, values in drawn.items())
    shares = np.bincount(drawn["operation"].ravel(), minlength=len(OPERATIONS)) / 12000
    assert abs(shares[0] - 1 / 2) < 0.025 and np.abs(shares[1:] - 1 / 30).max() < 0.01
    assert abs(drawn["negative"].mean() - 1 / 2) < 0.025
    assert abs(np.median(drawn["magnitude"]) - 90) <= 1 and drawn["magnitude"].max() == 100
    assert abs((drawn["magnitude"] < 85).mean() - 0.136) < 0.015  # less than 8.45, which is 1.1 deviations below 9


def test_all_frames_of_a_clip_are_changed_alike():
    pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
    pytest.importorskip("av", reason='needs PyAV: pip install "omnitrunk[world]"')
    frame = np.tile(np.linspace(0, 255, SIZE).astype(np.uint8)[None, :, None], (SIZE, 1, 3))
    video = encode_video(np.stack([frame] * 8))
    clips = {}
    for name, augment in (("own", UNCHANGED), ("told", Told(operations=2, size=SIZE, magnitude=7, seed=0))):
        options = {"size": SIZE, "batch": COUNT, "threads": 1, "device": "cpu"}
        decoder = VideoDecoder(FrameRule(frames=4, stride=2), whole, **options, augment=augment)
        decoder.submit([EncodedSample(row, row, 0, [video], [Clip(8, SIZE, SIZE, "VP9")]) for row in range(COUNT)])
        clips[name] = decoder.collect()["video"].int()
    once, twice = OPERATIONS.index("identity"), OPERATIONS.index("invert")
    assert torch.equal(clips["told"][once], 255 - clips["own"][once])
    assert torch.equal(clips["told"][twice], clips["own"][twice])
    changed = (255 - clips["told"] - clips["own"]).abs().float().mean(dim=(1, 2, 3, 4))
    assert (changed > 0.5).sum() >= 10
    spread = (clips["told"].amax(1) - clips["told"].amin(1)).float().mean(dim=(1, 2, 3))
    assert spread.max() < 5


def test_a_resumed_run_of_two_ranks_sees_the_same_pictures(tmp_path, pictures, seed):
    pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
    write_modality(tmp_path, "train", "rgb", ".png", [encode(picture) for picture in pictures])
    config = DataConfig(root=str(tmp_path), batch=8, size=SIZE, randaugment=1, threads=1)
    whole = take_batches(4, config, "rgb", seed)
    rank = take_batches(2, config, "rgb", seed, samples_seen=16, rank=1, world=2)
    for batch, half in zip(whole[2:], rank, strict=True):
        assert torch.equal(batch.tensors["rgb"][4:], half.tensors["rgb"])


def test_class_maps_are_not_torn_from_pictures_and_evaluation_changes_nothing():
    config = DataConfig(randaugment=2)
    with pytest.raises(ValueError, match=r"data.randaugment = 2 moves pictures, but not the semseg .*: set it to 0"):
        make_decoder(config, {"rgb": 1, "semseg": 4}, batch=2, seed=1, device="cpu")
    pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
    make_decoder(config, {"rgb": 1, "semseg": 4}, batch=2, seed=None, device="cpu").close()


def test_options_without_effect_are_named():
    config = DataConfig(randaugment=2)
    assert "randaugment" in idle_fields(config, ["audio"]) and "randaugment" not in idle_fields(config, ["video"])
    assert "randaugment_magnitude" in idle_fields(replace(config, randaugment=0), ["rgb"])
    assert "randaugment" in idle_fields(replace(config, source="random"), ["rgb"])


@pytest.mark.parametrize("options", [{"randaugment": -1}, {"randaugment_magnitude": 11}])
def test_a_mistake_is_one_line(options):
    with pytest.raises(ValueError, match=r"^data.randaugment is .*: use 0 or more operations"):
        DataConfig(**options)
