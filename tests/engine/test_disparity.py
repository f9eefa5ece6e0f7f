from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omnitrunk.engine.data import DataConfig, Loader, evaluation_batches, idle_fields, open_index
from omnitrunk.engine.data.decode.crop import Crop
from omnitrunk.engine.data.decode.dali import DaliPipeline
from omnitrunk.engine.data.decode.disparity import NORMS, Disparity
from omnitrunk.engine.data.decode.images import ImageDecoder
from omnitrunk.engine.data.sample import EncodedSample, Focal, Picture
from omnitrunk.engine.data.verify.images import BadFile
from omnitrunk.engine.data.verify.intrinsics import verify_intrinsics
from tests.engine.data_files import encode, undecodable_jpeg, write_folder

pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')

SIZE = 32
# Disparities in pixels and what the released code makes of them before mean and deviation.
RELEASED = [(-1.0, 0.01 / 75), (0.0, 0.01 / 75), (0.005, 0.01 / 75), (5.0, 5 / 75), (75.0, 1.0), (200.0, 1.0)]
CONFIG = DataConfig(batch=4, size=SIZE, threads=1, depth_as="disparity", depth_unit=0.001, randaugment_magnitude=9.0)


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def whole(heights, widths, positions):
    shape = np.stack([heights, widths], axis=1)
    return Crop(np.zeros_like(shape), shape, np.zeros(len(positions), dtype=np.int32))


def expected(meters, focal, mean, deviation, baseline=0.075):
    disparity = baseline * focal / meters.clip(0.01, 50)
    return (disparity.clip(0.01, 75) / 75 - mean) / deviation


def decode(depths, rule, focals=()):
    decoder = ImageDecoder({"depth": 1}, whole, size=SIZE, batch=len(depths), threads=1, device="cpu", disparity=rule)
    facts = [[Picture(SIZE, SIZE), *map(Focal, focals[row : row + 1])] for row in range(len(depths))]
    decoder.submit([EncodedSample(row, row, 0, [encode(depth)], facts[row]) for row, depth in enumerate(depths)])
    return decoder.collect()["depth"].double().numpy()[..., 0]


def standardized(values, mean, deviation):
    rule = Disparity(unit=1.0, baseline=1.0, mean=mean, deviation=deviation)

    def graph(_modalities, _on_gpu):
        from nvidia.dali import fn, types

        return [rule.standardize(fn.external_source(name="values", dtype=types.FLOAT, ndim=1))]

    pipeline = DaliPipeline(graph, (), batch=1, threads=1, device="cpu")
    pipeline.submit({"values": np.array([values], dtype=np.float32)})
    return pipeline.collect()[0][0].double().numpy()


@pytest.mark.parametrize("norm", NORMS)
def test_disparity_is_clipped_and_standardized_as_released(norm):
    mean, deviation = NORMS[norm]
    given, shares = np.array(RELEASED).T
    assert np.abs(standardized(given, mean, deviation) - (shares - mean) / deviation).max() < 1e-5
    rule = Disparity(unit=1.0, baseline=1.0, mean=mean, deviation=deviation)
    assert abs(rule.farthest - (shares[0] - mean) / deviation) < 1e-12


def test_depth_becomes_the_disparity_of_its_own_camera(rng):
    depths = [rng.integers(0, 65536, (SIZE, SIZE), dtype=np.uint16) for _ in range(3)]
    depths[0][:4] = 0
    for norm in NORMS.values():
        rule = Disparity(unit=1 / 8192, baseline=0.095, mean=norm[0], deviation=norm[1])
        found = decode(depths, rule, [519.0, 30.5, 1.0])
        for row, focal in enumerate((519.0, 30.5, 1.0)):
            assert np.abs(found[row] - expected(depths[row] / 8192, focal, *norm, baseline=0.095)).max() < 1e-4
    fixed = decode(depths, Disparity(unit=0.001, baseline=0.075, focal=570.0))
    assert np.abs(fixed - expected(np.stack(depths) / 1000, 570.0, 0, 1)).max() < 1e-5


def test_rotated_files_are_put_right_and_end_at_eight_meters(rng):
    depth = rng.integers(300, 14000, (SIZE, SIZE)).astype(np.uint16)
    stored = (depth << 3 | depth >> 13).astype(np.uint16)
    assert (depth > 8192).any()
    found = decode([stored], Disparity(unit=0.001, baseline=0.075, focal=520.0, rotated=True))[0]
    assert np.abs(found - expected((depth / 1000).clip(0, 8), 520.0, 0, 1)).max() < 1e-5


@pytest.fixture
def folder(tmp_path, rng):
    write_folder(tmp_path, "train", 6, rng)
    return replace(CONFIG, root=str(tmp_path))


def write_focals(config, focals):
    for number, focal in enumerate(focals):
        path = f"{config.root}/train/intrinsics/class{number * 2 // 6}"
        (target := Path(path)).mkdir(parents=True, exist_ok=True)
        (target / f"{number:04d}.txt").write_text(f"{focal} 0 320\n0 {focal} 240\n0 0 1\n")


def seen(config):
    batches = evaluation_batches(config, config.train_split, ("rgb", "depth"), 4)
    return torch.cat([batch.tensors["depth"] for batch in batches]).double().numpy()


def test_focal_lengths_come_from_a_file_for_each_sample_for_all_or_from_the_configuration(folder):
    stored = seen(replace(folder, depth_as="stored")) * 65536
    norm = NORMS["released"]
    focals = [300.0, 400.5, 500.0, 600.0, 700.0, 800.0]
    write_focals(folder, focals)
    assert open_index(folder, "train", ("rgb", "depth")).modalities == ("rgb", "depth", "intrinsics")
    own = seen(folder)
    for row, focal in enumerate(focals):
        assert np.abs(own[row] - expected(stored[row] / 1000, focal, *norm)).max() < 1e-3
    told = seen(replace(folder, depth_focal=123.0))
    assert np.abs(told - expected(stored / 1000, 123.0, *norm)).max() < 1e-3
    shared = Path(folder.root) / "train" / "intrinsics.txt"
    shared.write_text("251,0,10")
    before = open_index(folder, "train", ("rgb", "depth")).fingerprint
    shared.write_text("250,0,10")
    assert open_index(folder, "train", ("rgb", "depth")).fingerprint != before
    assert np.abs(seen(folder) - expected(stored / 1000, 250.0, *norm)).max() < 1e-3


def test_a_sample_without_focal_length_is_left_out_and_a_wrong_one_replaced(folder, seed):
    write_focals(folder, [300.0, 400.0, "wide", 600.0, 700.0])
    with Loader(replace(folder, bad_fraction=0.5), ("rgb", "depth"), seed=seed) as loader:
        for _ in range(5):
            assert torch.isfinite(next(loader).tensors["depth"]).all()
        assert loader.dataset_size == 5 and loader.faults.missing == 1
        assert [path.rpartition("/")[2] for path in loader.faults.named] == ["0002.txt"]


def test_an_undecodable_picture_is_named_beside_a_disparity(folder, seed):
    path = next(iter(Path(folder.root).glob("train/rgb/*/0001.jpg")))
    path.write_bytes(undecodable_jpeg(path.read_bytes()))
    config = replace(folder, depth_focal=500.0, color_jitter=0.4, bad_fraction=0.5)
    with Loader(config, ("rgb", "depth"), seed=seed) as loader:
        for _ in range(4):
            next(loader)
        assert list(loader.faults.named) == [str(path)]


@pytest.mark.parametrize("source", ["folder", "list", "shards"])
def test_without_focal_length_or_unit_there_is_one_line(folder, tmp_path, source):
    if source == "list":
        (tmp_path / "train.csv").write_text("rgb,depth\na.jpg,a.png\n")
    if source == "shards":
        import io
        import tarfile

        with tarfile.open(tmp_path / "train" / "0.tar", "w") as archive:
            for name in ("a.jpg", "a.depth.png"):
                archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match=r"needs the focal length: set data\.depth_focal .*intrinsics") as error:
        open_index(replace(folder, source=source), "train", ("rgb", "depth"))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        open_index(replace(folder, root="/nowhere", source="folder"), "train", ("rgb", "depth"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth_unit": 0.0}, r"data\.depth_unit is 0: a disparity needs the meters of one stored step"),
        ({"depth_unit": -1.0}, r"data\.depth_unit is -1: a disparity needs"),
        ({"depth_focal": -1.0}, r"data\.depth_focal is -1\.0: use 0 or more"),
        ({"depth_baseline": 0.0}, r"data\.depth_baseline is 0\.0: use the meters"),
        ({"depth_as": "meters"}, r"data\.depth_as is 'meters': use stored or disparity"),
        ({"depth_norm": "own"}, r"data\.depth_norm is 'own': use released or plain"),
    ],
)
def test_a_mistake_is_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        replace(CONFIG, **change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [b"", b"fx 500", b"-3", b"nan", b"inf 2", b"\xff\xfe"])
def test_a_file_that_holds_no_focal_length_is_bad(text):
    with pytest.raises(BadFile, match=r"empty|focal length"):
        verify_intrinsics(text)
    assert verify_intrinsics(b"529.5 0 365\n") == verify_intrinsics(b"529.5,0") == Focal(529.5)


def test_options_without_effect_are_named():
    fields = {"depth_unit", "depth_rotated", "depth_focal", "depth_baseline", "depth_norm"}
    assert not fields & idle_fields(CONFIG, ["rgb", "depth"]).keys()
    assert fields <= idle_fields(replace(CONFIG, depth_as="stored"), ["rgb", "depth"]).keys()
    assert {*fields, "depth_as"} <= idle_fields(CONFIG, ["rgb"]).keys()
    assert {*fields, "depth_as"} <= idle_fields(replace(CONFIG, source="random"), ["depth"]).keys()
