from __future__ import annotations

import gc
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from omnitrunk.engine.data import Batch, DataConfig, Loader, evaluation_batches, files
from omnitrunk.engine.data.faults import Faults, substitute
from omnitrunk.engine.data.index.folder import FolderIndex
from omnitrunk.engine.data.prefetch import Prefetcher
from omnitrunk.engine.data.source import SampleSource
from omnitrunk.engine.data.verify.images import BadFile, verify
from tests.engine.data_files import MODALITIES, break_samples, encode, palette_png, write_folder

pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')

TRAIN, VAL = 45, 21


@dataclass
class Folder:
    config: DataConfig
    faults: dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set whose first six training samples are broken in six ways, and two of the val samples."""
    root = tmp_path_factory.mktemp("set")
    seed = int(os.environ.get("OMNITRUNK_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
    print(f"OMNITRUNK_TEST_SEED={seed} for the files")
    rng = np.random.default_rng(seed)
    faults = break_samples(write_folder(root, "train", TRAIN, rng))
    val = write_folder(root, "val", VAL, rng)
    val["semseg"][0].write_bytes(
        palette_png(rng.integers(0, 8, (48, 64), dtype=np.uint8), np.zeros((256, 3), np.uint8))
    )
    val["rgb"][3].write_bytes(b"")
    val["depth"][8].write_bytes(encode(np.zeros((20, 20), np.uint16)))
    config = DataConfig(root=str(root), batch=12, size=32, bad_fraction=0.5, threads=2)
    return Folder(config, faults)


@dataclass
class Plan:
    positions: np.ndarray

    def to(self, device):
        return self


def data_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith(("prefetch", "read"))}


def take(steps, config, seed, modalities=MODALITIES, **options):
    with Loader(config, modalities, seed=seed, **options) as loader:
        return [next(loader) for _ in range(steps)]


def same(a, b):
    return (
        np.array_equal(a.positions, b.positions)
        and torch.equal(a.labels, b.labels)
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    )


def join(parts):
    tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
    labels = torch.cat([part.labels for part in parts])
    return Batch(tensors, labels, np.concatenate([part.positions for part in parts]))


def test_batches_have_the_promised_shapes_and_labels(folder, seed):
    batch = take(1, folder.config, seed, (*MODALITIES, "norm_rgb"))[0]
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.tensors.items()}
    assert found == {
        "rgb": (torch.uint8, (12, 32, 32, 3)),
        "depth": (torch.float32, (12, 32, 32, 1)),
        "semseg": (torch.uint8, (12, 8, 8)),
    }
    assert batch.labels.dtype == torch.int64 and set(batch.labels.tolist()) <= {0, 1}
    assert batch.positions.tolist() == list(range(12)) and batch.plan is None


def test_a_resumed_loader_repeats_the_uninterrupted_one_to_the_pixel(folder, seed):
    whole = take(9, folder.config, seed)
    with Loader(folder.config, MODALITIES, seed=seed) as loader:
        for _ in range(4):
            next(loader)
        seen = loader.samples_seen
    assert seen == 48
    resumed = take(5, folder.config, seed, samples_seen=seen)
    assert all(same(a, b) for a, b in zip(whole[4:], resumed, strict=True))
    assert not same(take(1, folder.config, seed + 1)[0], whole[0])


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batches_of_one(folder, seed, world):
    whole = take(6, folder.config, seed)
    ranks = [take(6, folder.config, seed, rank=rank, world=world) for rank in range(world)]
    assert all(same(join(parts), batch) for *parts, batch in zip(*ranks, whole, strict=True))


def test_micro_batches_are_parts_with_plans_of_their_own(folder, seed):
    whole = take(2, folder.config, seed)
    with Loader(folder.config, MODALITIES, seed=seed, make_plan=Plan, micro_batches=3) as loader:
        parts = []
        for seen in (0, 0, 12, 12, 12, 24):
            parts.append(next(loader))
            assert loader.samples_seen == seen
    for step, batch in enumerate(whole):
        assert same(join(parts[3 * step : 3 * step + 3]), batch)
    assert all(np.array_equal(part.plan.positions, part.positions) for part in parts)


def test_every_bad_file_is_named_once_and_never_delivered(folder, seed, caplog):
    index = FolderIndex(folder.config.root, "train", MODALITIES)
    with caplog.at_level(logging.WARNING), Loader(folder.config, MODALITIES, seed=seed) as loader:
        steps = 5 * TRAIN // 12
        batches = [next(loader) for _ in range(steps)]
        counts, named = loader.faults.counts(), dict(loader.faults.named)
    assert named.keys() == folder.faults.keys()
    assert all(part in named[path] for path, part in folder.faults.items())
    assert sorted(record.args[0] for record in caplog.records) == sorted(folder.faults)
    assert counts["samples_bad"] >= 5 * 6 - 6 and counts["samples_missing"] == 0
    assert counts["samples_read"] >= 12 * steps + counts["samples_bad"]
    assert all((batch.tensors["depth"].flatten(1).std(dim=1) > 0).all() for batch in batches)
    assert len(index) == TRAIN


def test_substitutes_are_a_function_of_position_and_attempt(seed):
    again = [[substitute(seed, position, attempt, 1000) for attempt in (1, 2, 3)] for position in range(300)]
    assert again == [[substitute(seed, position, attempt, 1000) for attempt in (1, 2, 3)] for position in range(300)]
    drawn = np.array(again)
    assert drawn.min() >= 0 and drawn.max() < 1000 and len(np.unique(drawn)) > 450
    with pytest.raises(ValueError, match=r"16 samples in a row could not be read: is data\.root still there"):
        substitute(seed, 0, 17, 1000)


def test_too_many_bad_samples_stop_the_run_and_say_why(folder, seed):
    config = replace(folder.config, bad_fraction=0.01)
    with (
        pytest.raises(ValueError, match=r"of \d+ samples are bad, more than data\.bad_fraction = 0\.01 .* first: /"),
        Loader(config, MODALITIES, seed=seed) as loader,
    ):
        for _ in range(20):
            next(loader)


def test_a_vanished_disk_stops_the_run(folder, seed, tmp_path):
    root = shutil.copytree(folder.config.root, tmp_path / "copy")
    config = replace(folder.config, root=str(root), prefetch=1)
    with pytest.raises(ValueError, match=r"samples in a row|are bad"), Loader(config, ("rgb",), seed=seed) as loader:
        next(loader)
        shutil.rmtree(root)
        for _ in range(10):
            next(loader)


def test_few_samples_say_nothing_about_the_share_of_bad_ones():
    faults = Faults(0.1)
    faults.looked_at = 63
    for i in range(63):
        faults.add(f"file{i}", "damaged")
    faults.looked_at = 64
    with pytest.raises(ValueError, match="64 of 64 samples are bad"):
        faults.add("file", "damaged")


def test_evaluation_shows_every_good_sample_once_in_order(folder):
    first, second = (list(evaluation_batches(folder.config, "val", MODALITIES, 8)) for _ in range(2))
    positions = np.concatenate([batch.positions for batch in first])
    assert positions.tolist() == [i for i in range(VAL) if i not in (3, 8)]
    assert [len(batch) for batch in first] == [7, 7, 5]
    index = FolderIndex(folder.config.root, "val", MODALITIES)
    assert torch.cat([batch.labels for batch in first]).tolist() == index.labels[positions].tolist()
    assert all(same(a, b) for a, b in zip(first, second, strict=True))


def test_evaluation_leaves_out_what_does_not_decode(folder):
    config = replace(folder.config, val_split="train")
    positions = np.concatenate([batch.positions for batch in evaluation_batches(config, "train", MODALITIES, 2)])
    assert positions.tolist() == list(range(6, TRAIN))


def test_splits_with_other_classes_are_refused(folder, tmp_path):
    root = shutil.copytree(folder.config.root, tmp_path / "copy")
    (root / "val" / "rgb" / "extra").mkdir()
    with pytest.raises(ValueError, match="differ in classes, so labels would not agree: extra"):
        evaluation_batches(replace(folder.config, root=str(root)), "val", MODALITIES, 8)


def test_an_error_in_the_background_reaches_the_consumer(folder, seed):
    def fail(positions):
        raise ValueError(f"no plan for position {positions[0]}")

    before = data_threads()
    with Loader(folder.config, ("rgb",), seed=seed, make_plan=fail) as loader:
        with pytest.raises(ValueError, match="no plan for position 0"):
            next(loader)
        with pytest.raises(StopIteration):
            next(loader)
    assert data_threads() <= before


def test_threads_end_with_the_loader(folder, seed):
    before = data_threads()
    loader = Loader(folder.config, ("rgb",), seed=seed)
    next(loader)
    assert data_threads() > before
    loader.close()
    loader.close()
    assert data_threads() <= before
    with pytest.raises(StopIteration):
        next(loader)
    forgotten = evaluation_batches(folder.config, "val", ("rgb",), 2)
    next(forgotten)
    del forgotten
    wait_until(lambda: data_threads() <= before)


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_prefetcher_may_be_collected_by_the_threads_it_waits_for():
    dropped = threading.Event()

    def collect():
        dropped.wait()
        gc.collect()

    def batches():
        with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
            while True:
                pool.submit(collect).result()
                yield Batch({}, torch.zeros(1, dtype=torch.int64), np.zeros(1))

    before = data_threads()
    prefetcher = Prefetcher(batches(), 1, "cpu")
    prefetcher.cycle = prefetcher  # only the garbage collector can end it
    del prefetcher
    dropped.set()
    wait_until(lambda: data_threads() <= before)


def test_a_program_that_forgets_its_loader_still_ends(folder):
    program = f"""
from omnitrunk.engine.data import DataConfig, Loader
loader = Loader({folder.config!r}, ("rgb",), seed=0)
print(len(next(loader)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "12"), done.stderr


def test_no_more_batches_are_made_ahead_than_asked_for():
    made = []

    def batches():
        while True:
            made.append(len(made))
            yield Batch({}, torch.zeros(1, dtype=torch.int64), np.array([len(made)]))

    prefetcher = Prefetcher(batches(), 3, "cpu")
    taken = []
    for _ in range(20):
        taken.append(next(prefetcher).positions[0])
        assert len(made) <= len(taken) + 3
    while len(made) < len(taken) + 3:
        time.sleep(0.001)
    prefetcher.close()  # the thread waits for a free place now, and must not wait forever
    assert taken == list(range(1, 21))


def test_waiting_is_accounted(seed):
    def slow(positions):
        threading.Event().wait(0.05)
        return Plan(positions)

    config = DataConfig(source="random", batch=2, size=8)
    with Loader(config, ("rgb",), seed=seed, make_plan=slow) as loader:
        next(loader)
        assert loader.wait_seconds > 0.01


def test_random_pictures_look_like_those_of_files(folder, seed):
    config = replace(folder.config, source="random")
    noise, real = take(1, config, seed)[0], take(1, folder.config, seed)[0]
    for name in MODALITIES:
        a, b = noise.tensors[name], real.tensors[name]
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert noise.tensors["semseg"].max() < 8 and 0 <= noise.tensors["depth"].min() <= noise.tensors["depth"].max() < 1


def test_random_pictures_are_keyed_by_position(seed):
    config = DataConfig(source="random", batch=12, size=8)
    whole = take(12, config, seed)
    assert all(same(a, b) for a, b in zip(whole[5:], take(7, config, seed, samples_seen=60), strict=True))
    halves = [take(12, config, seed, rank=rank, world=2) for rank in range(2)]
    assert all(same(join(parts), batch) for *parts, batch in zip(*halves, whole, strict=True))
    assert not same(take(1, config, seed + 1)[0], whole[0])
    assert not torch.equal(whole[0].tensors["rgb"], whole[1].tensors["rgb"])


def test_a_short_read_is_completed_or_found(folder, monkeypatch):
    path = FolderIndex(folder.config.root, "val", ("rgb",)).path(0, "rgb")
    whole, read = files.read_file(path), os.pread
    monkeypatch.setattr(os, "pread", lambda handle, size, offset: read(handle, min(size, 100), offset))
    assert files.read_file(path) == whole and files.read_file(path, 7, 301) == whole[7:308]
    monkeypatch.undo()
    with pytest.raises(BadFile):
        verify(whole[:100], "rgb")


def test_readers_share_a_batch_in_order(folder):
    index = FolderIndex(folder.config.root, "val", ("semseg",))
    positions = np.arange(VAL)
    found = []
    for threads in (1, 4, 50):
        source = SampleSource(index, ("semseg",), Faults(0.5), seed=0, threads=threads)
        found.append([row.files for row in source.fetch(positions, positions)])
        source.close()
    assert found[0] == found[1] == found[2] and len(found[0]) == VAL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "web"}, r"data\.source is 'web': use folder, list, shards or random"),
        ({"batch": 0}, r"data\.batch is 0: use 1 or more"),
        ({"crop_area": (0.5, 0.2)}, r"data\.crop_area is \(0\.5, 0\.2\)"),
        ({"bad_fraction": 1.0}, r"data\.bad_fraction is 1\.0"),
    ],
)
def test_useless_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**change)


def test_sizes_that_do_not_fit_are_refused(folder, seed):
    with pytest.raises(ValueError, match=r"data\.size 30 is not a multiple of the stride 4 of semseg: use 28"):
        Loader(replace(folder.config, size=30), MODALITIES, seed=seed)
    with pytest.raises(ValueError, match=r"does not split into 5 equal micro-batches: set data\.batch"):
        take(1, folder.config, seed, micro_batches=5)
    with pytest.raises(ValueError, match="evaluation reads files"):
        evaluation_batches(DataConfig(source="random"), "val", ("rgb",), 2)


def test_a_batch_moves_and_splits(folder, seed):
    batch = take(1, folder.config, seed)[0]
    assert same(batch.to("cpu"), batch) and same(join(batch.split(4)), batch)
    assert [len(part) for part in batch.split(4)] == [3] * 4
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in (moved.labels, *moved.tensors.values())} == {"meta"}
