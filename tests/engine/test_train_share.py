from __future__ import annotations

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from omnitrunk.engine.data import DataConfig, Loader, check_classes, evaluation_batches, idle_fields, open_index
from omnitrunk.engine.data.index.subset import choose_share
from tests.engine.data_files import encode_array, take_batches

COUNTS = {"ant": 40, "bee": 11, "cat": 1}


@pytest.fixture
def root(tmp_path, seed):
    """The same clouds as folders, list and shards; the first coordinate of every point tells the sample."""
    rows, number = ["path,label"], 0
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        with tarfile.open(tmp_path / split / "0.tar", "w") as archive:
            for name, count in COUNTS.items():
                folder = tmp_path / split / "points" / name
                folder.mkdir(parents=True)
                for place in range(count):
                    data = encode_array(np.full((5, 3), number, np.float32))
                    (folder / f"{place:03d}.npy").write_bytes(data)
                    rows.append(f"{split}/points/{name}/{place:03d}.npy,{name}")
                    for suffix, content in ((".npy", data), (".cls", name.encode())):
                        member = tarfile.TarInfo(f"{name}{place:03d}{suffix}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
                    number += 1
        (tmp_path / f"{split}.csv").write_text("\n".join(rows) + "\n")
        rows = rows[:1]
    return tmp_path


@pytest.mark.parametrize("source", ["folder", "list", "shards"])
def test_every_source_keeps_the_same_share_of_every_class(root, seed, source):
    config = DataConfig(root=str(root), source=source, batch=4, points=5, normalize_points=False, threads=1)
    whole = open_index(config, "train", ("points",))
    low = replace(config, train_share=0.1)
    index = open_index(low, "train", ("points",))
    assert np.bincount(index.labels).tolist() == [4, 1, 1] and index.classes == whole.classes == list(COUNTS)
    assert index.fingerprint != whole.fingerprint
    chosen = {int(np.load(io.BytesIO(index.read(sample, "points")))[0, 0]) for sample in range(len(index))}
    assert len(chosen) == 6
    for sample in range(len(index)):
        assert index.classes[index.labels[sample]] in index.path(sample, "points")
    plain = replace(low, point_scale=(1.0, 1.0), point_shift=0.0)
    for one_seed in (seed, seed + 1):
        with Loader(plain, ("points",), seed=one_seed) as loader:
            assert loader.dataset_size == 6
        batches = take_batches(3, plain, "points", one_seed)
        assert {int(cloud[0, 0]) for batch in batches for cloud in batch.tensors["points"]} == chosen
    assert len(open_index(low, "val", ("points",))) == sum(COUNTS.values())
    check_classes(low, open_index(low, "val", ("points",)), "val", ("points",))
    assert sum(len(batch) for batch in evaluation_batches(low, "val", ("points",), 16)) == sum(COUNTS.values())


def test_shares_are_exact_nested_and_random(seed):
    labels = np.random.default_rng(seed).integers(0, 7, 3000)
    before = np.zeros(0, dtype=np.int64)
    for share in (0.0001, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0):
        chosen = choose_share(labels, share)
        wanted = [max(round(share * count), 1) for count in np.bincount(labels)]
        assert np.bincount(labels[chosen]).tolist() == wanted
        assert np.isin(before, chosen).all() and (np.diff(chosen) > 0).all()
        before = chosen
    half = choose_share(labels, 0.5)
    assert abs(half.mean() - 1500) < 120 and 0.4 < (np.diff(half) == 1).mean() < 0.6


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_mistake_is_one_line(share):
    with pytest.raises(ValueError, match=r"data\.train_share is .*: use a share above 0, up to 1"):
        DataConfig(train_share=share)
    assert "train_share" in idle_fields(DataConfig(source="random", train_share=0.5), ["rgb"])
    assert "train_share" not in idle_fields(DataConfig(train_share=0.5), ["rgb"])
