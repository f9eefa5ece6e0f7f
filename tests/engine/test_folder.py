from __future__ import annotations

import logging
import os
import shutil

import numpy as np
import pytest

from omnitrunk.engine.data.index.folder import FolderIndex


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


@pytest.fixture
def root(tmp_path):
    for i in range(3):
        touch(tmp_path, f"train/rgb/cat/{i}.JPEG", f"train/depth/cat/{i}.png")
        touch(tmp_path, f"train/rgb/dog/{i}.v2.jpg", f"train/depth/dog/{i}.v2.png")
    return tmp_path


def test_samples_are_sorted_with_files_and_labels(root):
    touch(root, "train/rgb/.hidden/0.jpg", "train/rgb/cat/notes.txt", "train/rgb/README")
    index = FolderIndex(root, "train", ("rgb", "depth"))
    assert len(index) == 6 and index.classes == ["cat", "dog"] and index.missing == 0
    assert index.labels.tolist() == [0, 0, 0, 1, 1, 1] and index.labels.dtype == np.int64
    assert index.path(1, "rgb") == f"{root}/train/rgb/cat/1.JPEG"
    assert index.path(5, "depth") == f"{root}/train/depth/dog/2.v2.png"


def test_incomplete_samples_are_left_out_counted_and_named_once(root, caplog):
    os.remove(root / "train/depth/dog/1.v2.png")
    touch(root, "train/depth/cat/9.png", "train/depth/owl/0.png", "train/rgb/ant/0.jpg")
    with caplog.at_level(logging.WARNING):
        index = FolderIndex(root, "train", ("rgb", "depth"))
    assert len(index) == 5 and index.missing == 4
    assert len(caplog.records) == 1 and "4 samples" in caplog.text and "ant/0 has no file in depth" in caplog.text
    assert index.classes == ["ant", "cat", "dog"] and index.labels.tolist() == [1, 1, 1, 2, 2]


def test_the_fingerprint_follows_used_names_and_sizes_only(root, tmp_path_factory):
    def fingerprint():
        return FolderIndex(root, "train", ("rgb", "depth")).fingerprint

    first = fingerprint()
    os.utime(root / "train/rgb/cat/0.JPEG", (1, 1))
    touch(root, "train/rgb/cat/unpaired.jpg")
    assert fingerprint() == first
    copy = shutil.copytree(root, tmp_path_factory.mktemp("elsewhere") / "copy")
    assert FolderIndex(copy, "train", ("rgb", "depth")).fingerprint == first
    (root / "train/depth/cat/0.png").write_bytes(b"xy")
    second = fingerprint()
    shutil.move(root / "train/rgb/dog", root / "train/rgb/dug")
    shutil.move(root / "train/depth/dog", root / "train/depth/dug")
    assert len({first, second, fingerprint()}) == 3


def remove_depth(root):
    shutil.rmtree(root / "train/depth")


def empty_depth(root):
    shutil.rmtree(root / "train/depth")
    (root / "train/depth").mkdir()


def other_classes(root):
    shutil.move(root / "train/depth/cat", root / "train/depth/owl")
    shutil.rmtree(root / "train/depth/dog")


def two_files(root):
    touch(root, "train/rgb/cat/0.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_depth, "has no folder depth; it has: rgb"),
        (empty_depth, "depth has no class folders"),
        (other_classes, "no sample of .* has a file in each of rgb, depth"),
        (two_files, "two files of one sample: .*cat/0"),
    ],
)
def test_unusable_folders_are_explained_in_one_line(root, damage, message):
    damage(root)
    with pytest.raises(ValueError, match=message) as error:
        FolderIndex(root, "train", ("rgb", "depth"))
    assert "\n" not in str(error.value)


def test_wrong_names_are_explained(root):
    with pytest.raises(ValueError, match=r"data\.root is not set"):
        FolderIndex("", "train", ("rgb",))
    with pytest.raises(ValueError, match=r"nowhere does not exist: `omnitrunk world .*nowhere` writes one"):
        FolderIndex(root / "nowhere", "train", ("rgb",))
    with pytest.raises(ValueError, match="has no split val; it has: train"):
        FolderIndex(root, "val", ("rgb",))
    with pytest.raises(ValueError, match="smell cannot be read from files; readable: rgb, depth, semseg"):
        FolderIndex(root, "train", ("smell",))
