from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from omnitrunk.engine.data import DataConfig, Loader, evaluation_batches, idle_fields
from omnitrunk.engine.data.index.listing import ListIndex
from omnitrunk.engine.data.labels import number_labels
from tests.engine.data_files import MODALITIES, check_resume, encode_array, same_batch, take_batches, write_folder


@pytest.fixture
def root(tmp_path, seed):
    """Ten clouds; train.csv names all with labels 0 to 4, val.txt the last four with names."""
    rng = np.random.default_rng(seed)
    (tmp_path / "clouds").mkdir()
    for i in range(10):
        (tmp_path / "clouds" / f"{i}.npy").write_bytes(encode_array(rng.normal(size=(50, 3))))
    lines = ["path,label", *(f"clouds/{i}.npy,{i // 2}" for i in range(10))]
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "val.txt").write_text("".join(f"clouds/{i}.npy {i // 2}\n" for i in range(6, 10)))
    return tmp_path


@pytest.fixture
def config(root):
    return DataConfig(source="list", root=str(root), batch=4, points=16, threads=2)


def test_a_csv_file_gives_paths_and_labels_in_its_order(root):
    index = ListIndex(root, "train", ("points",))
    assert len(index) == 10 and index.labels.tolist() == [i // 2 for i in range(10)] and index.numbered
    assert index.path(3, "points") == f"{root}/clouds/3.npy"
    assert index.read(3, "points") == (root / "clouds" / "3.npy").read_bytes()
    assert index.classes == ["0", "1", "2", "3", "4"] and index.missing == 0


def test_lines_of_path_and_label_are_read_and_paths_may_hold_blanks(root):
    (root / "more.txt").write_text("clouds/a b.npy owl\n\n/far/away.npy ant\n")
    index = ListIndex(root, "more", ("points",))
    assert [index.path(i, "points") for i in range(2)] == [f"{root}/clouds/a b.npy", "/far/away.npy"]
    assert index.classes == ["ant", "owl"] and index.labels.tolist() == [1, 0] and not index.numbered
    assert len(ListIndex(root, "more.txt", ("points",))) == 2


def test_quoted_fields_and_other_columns_do_no_harm(root):
    (root / "odd.csv").write_text('label,path,note\n"big, owl", "clouds/1.npy",x\nant,clouds/2.npy,y\n')
    index = ListIndex(root, "odd", ("points",))
    assert index.classes == ["ant", "big, owl"] and index.path(0, "points") == f"{root}/clouds/1.npy"


def test_columns_named_like_modalities_pair_files(tmp_path, seed):
    pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
    paths = write_folder(tmp_path, "train", 6, np.random.default_rng(seed))
    rows = ["rgb,depth,semseg,label"]
    for row in zip(*(paths[modality] for modality in MODALITIES), strict=True):
        rows += [",".join([*(str(path.relative_to(tmp_path)) for path in row), row[0].parent.name])]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    config = DataConfig(root=str(tmp_path), batch=6, size=32)
    with Loader(config, MODALITIES, seed=seed) as loader:
        files = next(loader)
    with Loader(replace(config, source="list"), MODALITIES, seed=seed) as loader:
        assert same_batch(next(loader), files)


def test_a_run_is_the_same_when_resumed_on_other_threads_and_over_ranks(config, seed):
    check_resume(config, "points", seed)


def test_evaluation_shows_every_sample_once_with_its_number(config):
    batches = list(evaluation_batches(config, "val", ("points",), 3))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [3, 3, 4, 4]
    assert np.concatenate([batch.positions for batch in batches]).tolist() == [0, 1, 2, 3]


def test_splits_with_other_names_of_classes_are_refused(root, config):
    (root / "train.csv").write_text("path,label\nclouds/0.npy,ant\nclouds/1.npy,owl\n")
    (root / "val.txt").write_text("clouds/2.npy owl\nclouds/3.npy bee\n")
    with pytest.raises(ValueError, match="differ in classes, so labels would not agree: ant, bee"):
        evaluation_batches(config, "val", ("points",), 3)


def test_absent_and_bad_files_are_replaced_counted_and_named(root, config, seed, caplog):
    (root / "clouds" / "2.npy").unlink()
    (root / "clouds" / "5.npy").write_bytes(b"")
    with caplog.at_level(logging.WARNING), Loader(replace(config, bad_fraction=0.7), ("points",), seed=seed) as loader:
        batches = [next(loader) for _ in range(6)]
        named = dict(loader.faults.named)
    assert named == {f"{root}/clouds/2.npy": "No such file or directory", f"{root}/clouds/5.npy": "empty file"}
    again = take_batches(6, replace(config, bad_fraction=0.7), "points", seed)
    assert all(same_batch(a, b) for a, b in zip(batches, again, strict=True))


def test_the_fingerprint_is_that_of_the_list(root, tmp_path_factory):
    first = ListIndex(root, "train", ("points",)).fingerprint
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "train.csv").write_text((root / "train.csv").read_text())
    assert ListIndex(elsewhere, "train", ("points",)).fingerprint == first
    (elsewhere / "train.csv").write_text((root / "train.csv").read_text().replace("0.npy,0", "0.npy,1"))
    assert ListIndex(elsewhere, "train", ("points",)).fingerprint != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.npy,0\n", r"train\.csv has the columns file, label: it needs path"),
        ("path,label\n", r"train\.csv names no samples: match ROOT"),
        ("path,label\na.npy,0\n,1\n", "sample 2 lacks a path"),
        ("path,label\na.npy,0\nb.npy,\n", "1 of 2 samples of .* have no label"),
    ],
)
def test_unusable_lists_are_explained_in_one_line(root, text, message):
    (root / "train.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        ListIndex(root, "train", ("points",))
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_explained(root):
    with pytest.raises(ValueError, match=r"has no list test\.csv or test\.txt; it has: train\.csv, val\.txt"):
        ListIndex(root, "test", ("points",))
    with pytest.raises(ValueError, match=r"data\.root is not set"):
        ListIndex("", "train", ("points",))
    with pytest.raises(ValueError, match="one path a line, but the model reads rgb, depth: use a CSV file"):
        ListIndex(root, "val", ("rgb", "depth"))
    with pytest.raises(ValueError, match="smell cannot be read from files"):
        ListIndex(root, "val", ("smell",))


def test_labels_are_numbers_or_names():
    labels, classes, numbered = number_labels(["7", "0", "2"], "here")
    assert labels.tolist() == [7, 0, 2] and len(classes) == 8 and numbered
    labels, classes, numbered = number_labels(["7", "owl"], "here")
    assert labels.tolist() == [0, 1] and classes == ["7", "owl"] and not numbered


def test_modalities_that_are_not_aligned_are_refused(config, seed):
    with pytest.raises(ValueError, match=r"rgb, video cannot be read as one sample: video is read alone"):
        Loader(config, ("rgb", "video"), seed=seed)


def test_fields_that_change_nothing_are_known():
    config = DataConfig()
    for modality, used in (("rgb", "flip"), ("video", "frames"), ("audio", "seconds"), ("points", "point_shift")):
        idle = idle_fields(config, (modality,))
        assert used not in idle and "root" not in idle
    assert {"frames", "seconds", "points"} <= idle_fields(config, ("rgb", "depth")).keys()
    assert "size" in idle_fields(config, ("audio",)) and "size" not in idle_fields(config, ("video",))
    assert {"root", "threads", "crop_area"} <= idle_fields(DataConfig(source="random"), ("rgb",)).keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, r"data\.frames is 0: use 1 or more"),
        ({"seconds": 0.0}, r"data\.seconds is 0\.0: use at least the time of one sample"),
        ({"point_scale": (1.5, 1.0)}, r"data\.point_scale is \(1\.5, 1\.0\)"),
        ({"point_shift": -0.1}, r"data\.point_shift is -0\.1: use 0 or more"),
    ],
)
def test_useless_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**change)
