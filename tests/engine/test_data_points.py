from __future__ import annotations

import io
import logging
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

from omnitrunk.engine.data import DataConfig, Loader, evaluation_batches
from omnitrunk.engine.data.cursor import Cursor
from omnitrunk.engine.data.decode.points import PointRule, choose
from omnitrunk.engine.data.formats.point_files import read_labels, read_points
from omnitrunk.engine.data.verify.images import BadFile
from tests.engine.data_files import check_resume, encode_array, same_batch, take_batches, write_modality

COUNT = 64
TOTALS = [64, 65, 200, 1000, 10, 1, 300, 80]


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def clouds():
    rng = np.random.default_rng(5)
    return [(5 * rng.normal(size=(total, 4)) + 3).astype(np.float32) for total in TOTALS]


@pytest.fixture(scope="module")
def config(tmp_path_factory, clouds):
    root = tmp_path_factory.mktemp("clouds")
    for split in ("train", "val"):
        write_modality(root, split, "points", ".npy", [encode_array(cloud) for cloud in clouds])
    return DataConfig(root=str(root), batch=8, points=COUNT, threads=2)


def encode_npz(**arrays):
    target = io.BytesIO()
    np.savez_compressed(target, **arrays)
    return target.getvalue()


def encode_ply(points, layout, kind="float"):
    names = ("x", "y", "z", "quality")
    header = f"ply\nformat {layout} 1.0\ncomment made here\nelement vertex {len(points)}\n"
    header += "".join(f"property {kind} {name}\n" for name in names)
    header += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    if layout == "ascii":
        return (header + text(points) + "3 0 1 2\n").encode()
    order = "<" if "little" in layout else ">"
    values = np.asarray(points).astype(order + ("f4" if kind == "float" else "f8"))
    return header.encode() + values.tobytes() + b"\x03" + bytes(12)


def text(points):
    return "".join(" ".join(repr(float(value)) for value in row) + "\n" for row in points)


def forms(points):
    xyz = points[:, :3]
    faces = "3 0 1 2\n"
    return {
        "npy": encode_array(points),
        "npy float64": encode_array(points.astype(np.float64)),
        "npy columns first": encode_array(np.asfortranarray(points)),
        "npz points": encode_npz(points=points, labels=np.arange(3)),
        "npz alone": encode_npz(cloud=points),
        "ply ascii": encode_ply(points, "ascii"),
        "ply little": encode_ply(points, "binary_little_endian"),
        "ply big": encode_ply(points, "binary_big_endian"),
        "ply double": encode_ply(points, "binary_little_endian", "double"),
        "off": f"OFF\n# a comment\n{len(points)} 1 0\n{text(xyz)}{faces}".encode(),
        "off on one line": f"OFF{len(points)} 1 0\n{text(xyz)}{faces}".encode(),
        "text": text(points).encode(),
        "text with commas": text(points).replace(" ", ", ").encode(),
        "text with count": f"{len(points)}\n{text(xyz)}".encode(),
    }


@pytest.mark.parametrize("form", forms(np.zeros((3, 4), np.float32)))
def test_every_format_gives_the_coordinates(form, rng):
    points = rng.normal(size=(int(rng.integers(2, 40)), 4)).astype(np.float32)
    found = read_points(forms(points)[form]).points
    assert found.dtype == np.float32 and np.array_equal(found, points[:, :3])


@pytest.mark.parametrize("form", forms(np.zeros((3, 4), np.float32)))
def test_the_last_column_holds_the_parts(form, rng):
    points = rng.normal(size=(int(rng.integers(2, 40)), 4)).astype(np.float32)
    points[:, 3] = rng.integers(0, 7, len(points))
    data = forms(points)[form].replace(b"quality", rng.choice([b"part", b"label"]))
    labels = read_points(data).labels
    if form.startswith("off") or form == "text with count":  # coordinates alone
        assert labels is None
    else:
        assert np.array_equal(read_labels(labels, 7), points[:, 3]) and read_labels(labels, 7).dtype == np.int64


def test_npz_may_hold_the_parts_apart_and_other_properties_of_a_ply_are_none(rng):
    points, parts = rng.normal(size=(9, 6)), rng.integers(0, 4, 9)
    cloud = read_points(encode_npz(points=points, parts=parts))
    assert np.array_equal(read_labels(cloud.labels, 4), parts)
    assert np.array_equal(cloud.points, points[:, :3].astype(np.float32))
    assert read_points(forms(points[:, :4])["ply little"]).labels is None
    with pytest.raises(BadFile, match="damaged point cloud"):
        read_points(encode_npz(points=points, parts=parts[:5]))


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (None, "no part labels: .* set data.parts = 0"),
        ([0, 1, 4], r"part 4 is none of 0\.\.3: set data.parts"),
        ([0, -1, 2], "part -1 is none of"),
        ([0, 1.5, 2], "part 1.5 is none of"),
        ([0, np.nan, 2], "part nan is none of"),
    ],
)
def test_labels_that_are_no_parts_are_named(labels, reason):
    with pytest.raises(BadFile, match=reason) as error:
        read_labels(labels if labels is None else np.array(labels), 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (encode_array(np.zeros((0, 3))), "a cloud without points"),
        (encode_array(np.zeros((5, 2))), "not a cloud of"),
        (encode_array(np.zeros(30)), "not a cloud of"),
        (encode_array(np.array([["a", "b", "c"]])), "not an array of numbers"),
        (encode_array(np.array([[None] * 3])), "not an array of numbers: .*O"),
        (encode_array(np.array([[0, 1, np.nan], [1, 2, 3]])), "1 of 2 points are not finite"),
        (encode_array(np.array([[0, 1, 1e300]])), "1 of 1 points are not finite"),
        (encode_npz(a=np.zeros((2, 3)), b=np.zeros((2, 3))), "arrays a.npy, b.npy, none of which is named points"),
        (b"ply\nformat ascii 1.0\nelement face 1\nend_header\n", "begins with element face"),
        (b"ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nend_header\n1 2\n", "damaged point cloud"),
        (b"OFF\n3 1 0\n0 0 0\n", "3 numbers instead of 3 x 3"),
        (b"1 2 3\n4 5\n", "5 numbers instead of 2 x 3"),
        (b"<html>\n", "damaged point cloud|not a cloud"),
    ],
)
def test_other_content_is_named_for_what_it_is(data, reason):
    with pytest.raises(BadFile, match=reason) as error:
        read_points(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["npy", "npz points", "ply little", "ply ascii", "off"])
def test_a_file_cut_anywhere_is_found(form, rng):
    points = rng.normal(size=(9, 4)).astype(np.float32)
    data = forms(points)[form]
    tail = {"ply little": 13, "ply ascii": 9, "off": 9}.get(form, 0)  # faces, which are not read
    for length in range(len(data) - tail):
        # A number that is cut reads as another number; the test of text formats stops before the last one.
        if form in ("ply ascii", "off") and length > len(data) - tail - 25:
            continue
        with pytest.raises(BadFile):
            read_points(data[:length])


def test_damage_raises_nothing_but_bad_file(rng):
    whole = list(forms(rng.normal(size=(6, 4)).astype(np.float32)).values())
    for _ in range(1500):
        data = bytearray(whole[rng.integers(len(whole))])
        for at in rng.integers(0, min(len(data), 250), 4):
            data[at] = rng.integers(256)
        with suppress(BadFile):
            assert np.isfinite(read_points(bytes(data)).points).all()


def test_a_subset_is_even_has_no_point_twice_and_depends_on_the_position(seed):
    chosen = np.stack([choose(40, 10, seed, position) for position in range(3000)])
    assert all(len(set(row)) == 10 for row in chosen.tolist())
    assert np.abs(np.bincount(chosen.ravel(), minlength=40) / 3000 - 0.25).max() < 0.04
    assert np.array_equal(choose(40, 10, seed, 7), chosen[7]) and not np.array_equal(chosen[6], chosen[7])


def test_a_small_cloud_has_every_point_and_then_some_again(seed):
    chosen = choose(10, 64, seed, 3)
    assert sorted(chosen[:10]) == list(range(10)) and len(chosen) == 64
    assert chosen.min() >= 0 and chosen.max() < 10 and len(set(chosen[10:].tolist())) > 5
    assert choose(1, 5, seed, 0).tolist() == [0] * 5


def test_training_normalizes_then_scales_and_shifts_each_axis(clouds, config, seed):
    plain = PointRule(count=COUNT, normalize=True)
    factors, moves = [], []
    for batch in take_batches(12, config, "points", seed):
        points = batch.tensors["points"]
        assert points.shape == (8, COUNT, 3) and points.dtype == torch.float32
        samples = Cursor(len(TOTALS), seed, 8).samples_at(batch.positions)
        for row, (position, sample) in enumerate(zip(batch.positions.tolist(), samples, strict=True)):
            base = plain.apply(clouds[sample][:, :3], seed, position)[0].astype(np.float64)
            if len(clouds[sample]) == 1:
                continue
            for axis in range(3):
                factor, move = np.polyfit(base[:, axis], points[row, :, axis].numpy(), 1)
                factors.append(factor)
                moves.append(move)
    assert 2 / 3 - 1e-4 < min(factors) < 0.75 and 1.4 < max(factors) < 1.5 + 1e-4
    assert -0.2 - 1e-4 < min(moves) < -0.15 and 0.15 < max(moves) < 0.2 + 1e-4


def test_evaluation_shows_every_cloud_once_on_the_unit_sphere(clouds, config):
    first, second = (list(evaluation_batches(config, "val", ("points",), 5)) for _ in range(2))
    assert [len(batch) for batch in first] == [5, 3]
    assert all(same_batch(a, b) for a, b in zip(first, second, strict=True))
    for batch in first:
        for points, place in zip(batch.tensors["points"].double(), batch.positions, strict=True):
            radius = points.norm(dim=1).max()
            assert points.mean(dim=0).abs().max() < 1e-6
            assert abs(radius - 1) < 1e-6 if TOTALS[place] > 1 else radius == 0


def test_without_normalization_points_are_those_of_the_file(clouds, config):
    plain = replace(config, normalize_points=False)
    for batch in evaluation_batches(plain, "val", ("points",), 8):
        for points, place in zip(batch.tensors["points"].numpy(), batch.positions, strict=True):
            assert {tuple(row) for row in points.tolist()} <= {tuple(row) for row in clouds[place][:, :3].tolist()}


def test_a_run_is_the_same_when_resumed_on_other_threads_and_over_ranks(config, seed):
    check_resume(config, "points", seed)


def test_bad_clouds_are_replaced_counted_and_named(tmp_path, clouds, seed, caplog):
    contents = [encode_array(clouds[i % len(clouds)]) for i in range(24)]
    contents[0] = contents[0][:-4]
    contents[3] = b""
    contents[4] = encode_array(np.full((5, 3), np.inf))
    contents[8] = b"\x00" * 500
    paths = write_modality(tmp_path, "train", "points", ".npy", contents)
    reasons = {0: "damaged", 3: "empty", 4: "5 of 5 points are not finite", 8: "point cloud"}
    config = DataConfig(root=str(tmp_path), batch=8, points=COUNT, bad_fraction=0.6, threads=2)
    with caplog.at_level(logging.WARNING), Loader(config, ("points",), seed=seed) as loader:
        batches = [next(loader) for _ in range(9)]
        assert loader.replaced >= 2 * len(reasons)
        named = dict(loader.faults.named)
    assert named.keys() == {str(paths[i]) for i in reasons}
    for i, reason in reasons.items():
        assert reason in named[str(paths[i])]
    again = take_batches(9, config, "points", seed)
    assert all(same_batch(a, b) for a, b in zip(batches, again, strict=True))


def test_random_clouds_look_like_those_of_files(config, seed):
    noise = take_batches(1, replace(config, source="random"), "points", seed)[0].tensors["points"]
    assert noise.shape == (8, COUNT, 3) and noise.dtype == torch.float32 and noise.abs().max() < 3


def test_one_factor_for_all_axes_where_nothing_is_stretched(clouds, seed):
    plain, scaled = (PointRule(count=COUNT, normalize=True, scale=scale, stretch=False) for scale in ((1, 1), (0.5, 2)))
    pairs = [[rule.apply(clouds[2][:, :3], seed, at)[0] for rule in (scaled, plain)] for at in range(20)]
    factors = np.array([np.linalg.norm(ours) / np.linalg.norm(base) for ours, base in pairs])
    for (ours, base), factor in zip(pairs, factors, strict=True):
        np.testing.assert_allclose(ours, factor * base, rtol=1e-4, atol=1e-5)
    assert 0.5 <= factors.min() < 0.9 and 1.5 < factors.max() <= 2


def test_every_point_keeps_its_part_through_choice_and_augmentation(tmp_path, rng, seed):
    """The part is a function of the stored coordinates, which can be told from those of the batch."""
    contents = []
    for total in (40, 64, 200, 300):
        points = rng.normal(size=(total, 3))
        points[:, 0] = rng.permutation(total)  # in steps of one, whatever is subtracted and scaled
        contents.append(encode_array(np.column_stack([points, points[:, 0] % 7]).astype(np.float32)))
    write_modality(tmp_path, "train", "points", ".npy", contents)
    config = DataConfig(root=str(tmp_path), batch=4, points=COUNT, parts=7, threads=2)
    samples = [np.load(io.BytesIO(data)) for data in contents]
    for batch in take_batches(5, config, "points", seed):
        assert batch.tensors["parts"].dtype == torch.int64 and batch.tensors["parts"].shape == (4, COUNT)
        order = Cursor(4, seed, 4).samples_at(batch.positions)
        for row, (position, sample) in enumerate(zip(batch.positions.tolist(), order, strict=True)):
            stored, shown = samples[sample], batch.tensors["points"][row, :, 0].double().numpy()
            chosen = choose(len(stored), COUNT, seed, position)
            slope, shift = np.polyfit(stored[chosen, 0].astype(np.float64), shown, 1)
            place = np.rint((shown - shift) / slope).astype(int)
            assert np.array_equal(batch.tensors["parts"][row].numpy(), place % 7)


def test_a_cloud_without_the_labels_asked_for_is_replaced_and_named(tmp_path, rng, seed):
    clouds = [np.column_stack([rng.normal(size=(70, 3)), rng.integers(0, 5, 70)]) for _ in range(12)]
    clouds[2], clouds[7][3, 3] = clouds[2][:, :3], 5
    paths = write_modality(tmp_path, "train", "points", ".npy", [encode_array(cloud) for cloud in clouds])
    write_modality(tmp_path, "val", "points", ".npy", [encode_array(cloud) for cloud in clouds])
    config = DataConfig(root=str(tmp_path), batch=6, points=COUNT, parts=5, threads=2, bad_fraction=0.6)
    with Loader(config, ("points",), seed=seed) as loader:
        for _ in range(4):
            assert next(loader).tensors["parts"].max() < 5
        named = dict(loader.faults.named)
    assert named.keys() == {str(paths[2]), str(paths[7])}
    assert "no part labels" in named[str(paths[2])] and "part 5 is none of 0..4" in named[str(paths[7])]
    shown = np.concatenate([batch.positions for batch in evaluation_batches(config, "val", ("points",), 5)])
    assert shown.tolist() == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]
    assert all("parts" not in batch.tensors for batch in take_batches(2, replace(config, parts=0), "points", seed))


def test_labeled_clouds_resume_exactly_and_random_ones_have_labels(tmp_path, rng, seed):
    clouds = [np.column_stack([rng.normal(size=(70, 3)), rng.integers(0, 5, 70)]) for _ in range(8)]
    write_modality(tmp_path, "train", "points", ".npy", [encode_array(cloud) for cloud in clouds])
    config = DataConfig(root=str(tmp_path), batch=4, points=COUNT, parts=5, threads=2)
    check_resume(config, "points", seed)
    parts = take_batches(1, replace(config, source="random"), "points", seed)[0].tensors["parts"]
    assert parts.shape == (4, COUNT) and parts.dtype == torch.int64 and parts.unique().tolist() == [0, 1, 2, 3, 4]
