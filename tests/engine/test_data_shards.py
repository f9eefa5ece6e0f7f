from __future__ import annotations

import io
import json
import logging
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from omnitrunk.engine.data import DataConfig, Loader, evaluation_batches
from omnitrunk.engine.data.formats.tar import DamagedArchive, members
from omnitrunk.engine.data.index.shards import ShardIndex
from tests.engine.data_files import (
    MODALITIES,
    check_resume,
    encode_array,
    same_batch,
    sample_files,
    take_batches,
    write_folder,
)

SUFFIX = {"rgb": "jpg", "depth": "png", "semseg": "png"}


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def write_tar(path, contents, form=tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def clouds(rng, count):
    return [rng.normal(size=(40, 3)).astype(np.float32) for _ in range(count)]


@pytest.fixture
def root(tmp_path, rng):
    """Three shards of four point clouds with labels 0 to 2."""
    for split in ("train", "val"):
        for shard in range(3):
            contents = {}
            for key, cloud in enumerate(clouds(rng, 4)):
                contents[f"{key:03d}.npy"] = encode_array(cloud)
                contents[f"{key:03d}.cls"] = str(shard).encode()
            write_tar(tmp_path / split / f"{shard:05d}.tar", contents)
    return tmp_path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_finds_them(form, tmp_path, rng):
    names = ["a.npy", "folder/b.npy", f"{'long/' * 25}c.npy", f"{'d' * 90}.npy"]
    if form != tarfile.USTAR_FORMAT:
        names += [f"{'very/' * 60}{'e' * 120}.npy", "größe.npy"]
    path = tmp_path / "shard.tar"
    write_tar(path, {name: rng.bytes(int(rng.integers(0, 3000))) for name in names}, form)
    with tarfile.open(path) as archive:
        expected = [(member.name, member.offset_data, member.size) for member in archive]
    found = list(members(str(path)))
    assert [(member.name, member.offset, member.size) for member in found] == expected
    data = path.read_bytes()
    assert all(member.head == data[member.offset : member.offset + min(member.size, 512)] for member in found)


def test_folders_and_links_in_an_archive_are_passed_over(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_bytes(b"x")
    (tmp_path / "folder" / "link").symlink_to("a.txt")
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(tmp_path / "folder", "./folder")
    assert [member.name for member in members(str(tmp_path / "shard.tar"))] == ["./folder/a.txt"]


def test_a_number_too_large_for_octal_digits_is_read(tmp_path):
    header = bytearray(tarfile.TarInfo("a.npy").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"\x80" + (5).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "shard.tar").write_bytes(bytes(header) + b"hello" + bytes(507 + 1024))
    assert [(member.size, member.head) for member in members(str(tmp_path / "shard.tar"))] == [(5, b"hello")]


def test_a_damaged_archive_gives_what_comes_before(tmp_path, rng):
    path = tmp_path / "shard.tar"
    write_tar(path, {f"{i}.npy": rng.bytes(700) for i in range(5)})
    whole = list(members(str(path)))
    data = path.read_bytes()
    for length in (0, 300, 512, 1000, whole[3].offset - 512, whole[3].offset + 699, whole[4].offset - 1):
        path.write_bytes(data[:length])
        expected = [member for member in whole if member.offset + member.size <= length]
        found = []
        with pytest.raises(DamagedArchive):
            found.extend(members(str(path)))  # keeps what came before the exception
        assert found == expected
    path.write_bytes(b"\x07" * 2048)
    with pytest.raises(DamagedArchive, match="no tar header at byte 0"):
        list(members(str(path)))


def test_samples_have_labels_names_and_bytes(root):
    index = ShardIndex(root, "train", ("points",))
    assert len(index) == 12 and index.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and index.numbered
    assert index.classes == ["0", "1", "2"] and index.missing == 0
    assert index.path(5, "points") == f"{root}/train/00001.tar:001.npy"
    with tarfile.open(root / "train" / "00001.tar") as archive:
        assert index.read(5, "points") == archive.extractfile("001.npy").read()


def test_labels_come_from_json_and_may_be_names(tmp_path, rng):
    contents = {}
    for key, name in enumerate(["owl", "ant", "owl"]):
        contents[f"{key}.npy"] = encode_array(clouds(rng, 1)[0])
        contents[f"{key}.json"] = json.dumps({"label": name, "caption": "x" * 900 * key}).encode()
    write_tar(tmp_path / "train" / "a.tar", contents)
    index = ShardIndex(tmp_path, "train", ("points",))
    assert index.classes == ["ant", "owl"] and index.labels.tolist() == [1, 0, 1] and not index.numbered


def test_without_labels_all_is_one_class(tmp_path, rng):
    write_tar(tmp_path / "train" / "a.tar", {"0.npy": encode_array(clouds(rng, 1)[0])})
    index = ShardIndex(tmp_path, "train", ("points",))
    assert index.labels.tolist() == [0] and index.classes == ["unlabeled"]


def test_modalities_are_told_apart_in_one_archive_and_in_folders_of_their_own(tmp_path, rng):
    together, apart = {}, {modality: {} for modality in MODALITIES}
    for key in range(4):
        files = sample_files(rng)
        for modality, data in files.items():
            dotted = f"{key}.{SUFFIX[modality]}" if modality == "rgb" else f"{key}.{modality}.png"
            together[dotted] = data
            apart[modality][f"{key}.{SUFFIX[modality]}"] = data
        together[f"{key}.cls"] = apart["rgb"][f"{key}.cls"] = b"%d" % key
    write_tar(tmp_path / "one" / "train" / "a.tar", together)
    for modality, contents in apart.items():
        write_tar(tmp_path / "many" / "train" / modality / "a.tar", contents)
    one, many = (ShardIndex(tmp_path / name, "train", MODALITIES) for name in ("one", "many"))
    assert len(one) == len(many) == 4 and one.labels.tolist() == many.labels.tolist() == [0, 1, 2, 3]
    for sample in range(4):
        for modality in MODALITIES:
            assert one.read(sample, modality) == many.read(sample, modality)
    pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
    config = DataConfig(source="shards", root=str(tmp_path / "one"), batch=4, size=32)
    batches = []
    for name in ("one", "many"):
        with Loader(replace(config, root=str(tmp_path / name)), MODALITIES, seed=3) as loader:
            batches.append(next(loader))
    assert same_batch(*batches)


def test_shards_and_folders_give_the_same_samples(tmp_path, rng):
    pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
    paths = write_folder(tmp_path / "files", "train", 6, rng)
    for modality in MODALITIES:
        contents = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths[modality]}
        contents |= {f"{path.parent.name}/{path.stem}.cls": path.parent.name.encode() for path in paths[modality]}
        write_tar(tmp_path / "shards" / "train" / modality / "0.tar", contents)
    config = DataConfig(root=str(tmp_path / "files"), batch=6, size=32)
    with Loader(config, MODALITIES, seed=1) as loader:
        files = next(loader)
    with Loader(replace(config, source="shards", root=str(tmp_path / "shards")), MODALITIES, seed=1) as loader:
        assert same_batch(next(loader), files)


def test_incomplete_samples_are_left_out_counted_and_named_once(tmp_path, rng, caplog):
    cloud = encode_array(clouds(rng, 1)[0])
    write_tar(
        tmp_path / "train" / "a.tar", {"0.npy": cloud, "0.cls": b"1", "1.cls": b"1", "2.npy": cloud, "2.cls": b"0"}
    )
    with caplog.at_level(logging.WARNING):
        index = ShardIndex(tmp_path, "train", ("points",))
    assert len(index) == 2 and index.missing == 1 and index.labels.tolist() == [1, 0]
    assert len(caplog.records) == 1 and "a.tar:1 has no member for points" in caplog.text


def test_a_truncated_shard_is_named_and_the_rest_of_it_used(root, caplog):
    path = root / "train" / "00001.tar"
    last = next(member for member in members(str(path)) if member.name == "003.npy")
    path.write_bytes(path.read_bytes()[: last.offset + 100])
    with caplog.at_level(logging.WARNING):
        index = ShardIndex(root, "train", ("points",))
    assert len(index) == 11 and f"bad archive {path}" in caplog.text and "3 samples before that" in caplog.text


def test_the_fingerprint_follows_used_names_and_sizes_only(root, tmp_path_factory, rng):
    def fingerprint(folder=root):
        return ShardIndex(folder, "train", ("points",)).fingerprint

    first = fingerprint()
    copy = shutil.copytree(root, tmp_path_factory.mktemp("elsewhere") / "copy")
    assert fingerprint(copy) == first
    write_tar(root / "train" / "00003.tar", {"0.txt": b"nothing of interest"})
    assert fingerprint() == first
    write_tar(root / "train" / "00004.tar", {"0.npy": b"x", "0.cls": b"0"})
    second = fingerprint()
    (root / "train" / "00004.tar").rename(root / "train" / "00005.tar")
    assert len({first, second, fingerprint()}) == 3


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"0.txt": b"x"}, "no sample of .* has a member for each of points: match ROOT"),
        ({"0.npy": b"x", "0.npz": b"x"}, r"two members of one sample for points: .*a\.tar:0\.npz and \.npy"),
        ({"0.npy": b"x", "1.npy": b"x", "1.cls": b"3"}, "1 of 2 samples of .* have no label"),
        ({"0.npy": b"x", "0.json": b"{"}, r"a\.tar:0\.json is not valid JSON"),
    ],
)
def test_unusable_shards_are_explained_in_one_line(tmp_path, contents, message):
    write_tar(tmp_path / "train" / "a.tar", contents)
    with pytest.raises(ValueError, match=message) as error:
        ShardIndex(tmp_path, "train", ("points",))
    assert "\n" not in str(error.value)


def test_missing_shards_are_explained(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="has no archives for points: match ROOT"):
        ShardIndex(tmp_path, "train", ("points",))
    with pytest.raises(ValueError, match="has no split val; it has: train"):
        ShardIndex(tmp_path, "val", ("points",))


def test_a_run_is_the_same_when_resumed_on_other_threads_and_over_ranks(root, seed):
    config = DataConfig(source="shards", root=str(root), batch=4, points=16, threads=2)
    check_resume(config, "points", seed)


def test_evaluation_shows_every_sample_once(root):
    config = DataConfig(source="shards", root=str(root), points=16)
    batches = list(evaluation_batches(config, "val", ("points",), 5))
    assert np.concatenate([batch.positions for batch in batches]).tolist() == list(range(12))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_bad_members_are_replaced_counted_and_named(root, rng, seed, caplog):
    good = [encode_array(cloud) for cloud in clouds(rng, 20)]
    contents = {f"{key:02d}.npy": data for key, data in enumerate(good)}
    contents["00.npy"] = good[0][:-10]
    contents["01.npy"] = b""
    shutil.rmtree(root / "train")
    write_tar(root / "train" / "a.tar", contents)
    write_tar(root / "train" / "b.tar", {"0.npy": good[0]})
    config = DataConfig(source="shards", root=str(root), batch=8, points=16, bad_fraction=0.6, prefetch=1)
    with caplog.at_level(logging.WARNING), Loader(config, ("points",), seed=seed) as loader:
        # An archive that shrinks after it was indexed.
        (root / "train" / "b.tar").write_bytes((root / "train" / "b.tar").read_bytes()[:600])
        for _ in range(12):
            next(loader)
        named = dict(loader.faults.named)
    a, b = root / "train" / "a.tar", root / "train" / "b.tar"
    assert {f"{a}:00.npy", f"{a}:01.npy"} <= named.keys() <= {f"{a}:00.npy", f"{a}:01.npy", f"{b}:0.npy"}
    first = take_batches(3, config, "points", seed)
    assert all(same_batch(x, y) for x, y in zip(first, take_batches(3, config, "points", seed), strict=True))
