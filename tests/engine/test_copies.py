from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from omnitrunk.engine.data import DataConfig, Loader, evaluation_batches
from omnitrunk.engine.data.cursor import Cursor
from omnitrunk.engine.data.decode.audio import random_offsets
from omnitrunk.engine.data.decode.augment import MOVING, OPERATIONS, RandAugment
from omnitrunk.engine.data.decode.crop import random_crop
from omnitrunk.engine.data.decode.jitter import ColorJitter
from tests.engine.data_files import (
    MODALITIES,
    check_resume,
    encode_array,
    encode_audio,
    encode_video,
    levels,
    same_batch,
    take_batches,
    undecodable_jpeg,
    write_folder,
    write_modality,
)

pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')

SIZE, COPIES = 32, 4


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def folder(tmp_path, rng):
    paths = write_folder(tmp_path, "train", 5, rng)
    config = DataConfig(root=str(tmp_path), batch=8, size=SIZE, threads=2, copies=COPIES, bad_fraction=0.6)
    return config, paths


@pytest.fixture
def clips(tmp_path):
    pytest.importorskip("av", reason='needs PyAV: pip install "omnitrunk[world]"')
    write_modality(tmp_path, "train", "video", ".webm", [encode_video(levels(total)) for total in range(8, 15)])
    return DataConfig(root=str(tmp_path), batch=8, size=SIZE, frames=4, frame_stride=2, copies=COPIES, threads=2)


def test_a_position_shows_the_sample_that_its_copies_share(seed):
    cursor = Cursor(7, seed, 8, copies=COPIES)
    plain = Cursor(7, seed, 2)
    for _ in range(9):
        positions = cursor.take()
        assert np.array_equal(cursor.samples_at(positions), plain.samples_at(plain.take()).repeat(COPIES))
    with pytest.raises(ValueError, match=r"a batch of 6 samples per rank .* multiple of ranks x data\.copies = 8"):
        Cursor(7, seed, 12, world=2, copies=COPIES)
    with pytest.raises(ValueError, match=r"data\.batch is 10: use a multiple of data\.copies = 4"):
        DataConfig(batch=10, copies=4)


def test_every_row_is_cut_as_its_own_position_says(folder, seed):
    """The same rows as decoded alone, but for JPEG, whose whole and cut-out decoding differ at the borders."""
    config, _ = folder
    with Loader(config, MODALITIES, seed=seed) as loader:
        batches = [next(loader) for _ in range(3)]
    order = Cursor(5, seed, 2)
    for batch in batches:
        samples = order.samples_at(order.take()).repeat(COPIES)
        assert np.array_equal(batch.labels, samples * 2 // 5)
        heights, widths = np.full(8, 48), np.full(8, 64)
        crop = random_crop(heights, widths, batch.positions, seed=seed, area=config.crop_area, flip=True)
        for row, sample in enumerate(samples):
            alone = cut_alone(config, sample, crop, row)
            assert torch.equal(batch.tensors["semseg"][row], alone["semseg"][0])
            assert torch.equal(batch.tensors["depth"][row], alone["depth"][0])
            assert (batch.tensors["rgb"][row].int() - alone["rgb"][0]).abs().float().mean() < 2
        assert len({row.numpy().tobytes() for row in batch.tensors["rgb"]}) > 4


def cut_alone(config, sample, crop, row):
    from omnitrunk.engine.data.decode.images import ImageDecoder
    from omnitrunk.engine.data.index.folder import FolderIndex
    from omnitrunk.engine.data.sample import EncodedSample, Picture

    index = FolderIndex(config.root, "train", MODALITIES)
    files = [index.read(int(sample), modality) for modality in MODALITIES]
    chosen = type(crop)(*(values[[row]] for values in crop))
    options = {"size": SIZE, "batch": 1, "threads": 1, "device": "cpu"}
    decoder = ImageDecoder({"rgb": 1, "depth": 1, "semseg": 4}, lambda *_: chosen, **options)
    decoder.submit([EncodedSample(0, 0, 0, files, [Picture(48, 64)] * 3)])
    return decoder.collect()


def test_each_sample_is_read_and_decoded_once(folder, seed):
    config, _ = folder
    with Loader(replace(config, prefetch=1), ("rgb",), seed=seed) as loader:
        for _ in range(6):
            next(loader)
        assert loader.faults.looked_at <= 2 * 9


def test_copies_of_a_bad_sample_have_one_stand_in(folder, seed):
    config, paths = folder
    paths["rgb"][1].write_bytes(undecodable_jpeg(paths["rgb"][1].read_bytes()))
    paths["rgb"][2].write_bytes(b"")
    with Loader(config, ("rgb",), seed=seed) as loader:
        batches = [next(loader) for _ in range(10)]
    for batch in batches:
        replaced = batch.replaced.reshape(-1, COPIES)
        assert (replaced == replaced[:, :1]).all()
        assert (batch.labels.view(-1, COPIES) == batch.labels.view(-1, COPIES)[:, :1]).all()
    assert any(batch.replaced.any() for batch in batches)
    again = take_batches(10, config, "rgb", seed)
    assert all(same_batch(a, b) for a, b in zip(batches, again, strict=True))


def test_copies_of_a_clip_have_its_frames_and_crops_of_their_own(clips, tmp_path, seed):
    for batch in take_batches(3, clips, "video", seed):
        greys = batch.tensors["video"].double().mean(dim=(2, 3, 4)).view(2, COPIES, 4)
        assert (greys - greys[:, :1]).abs().max() < 1 and (greys[:, :, 1:] > greys[:, :, :-1]).all()
    frames = np.broadcast_to(np.linspace(20, 230, 64).astype(np.uint8)[None, None, :, None], (8, 48, 64, 3)).copy()
    root = tmp_path / "ramp"
    write_modality(root, "train", "video", ".webm", [encode_video(frames)] * 2)
    ramp = take_batches(1, replace(clips, root=str(root)), "video", seed)[0].tensors["video"]
    assert len({row.numpy().tobytes() for row in ramp}) == 8


def test_runs_are_the_same_when_resumed_on_other_threads_and_over_ranks(folder, clips, seed):
    check_resume(folder[0], "rgb", seed)
    check_resume(clips, "video", seed)


def test_every_row_is_changed_as_its_own_position_says(folder, seed, monkeypatch):
    def draw(_self, positions):
        ones = np.ones(len(positions), np.float32)
        return {"brightness": ones * positions / 10 + 0.2, "contrast": ones, "saturation": ones, "hue": 0 * ones}

    monkeypatch.setattr(ColorJitter, "draw", lambda *a: {k: v.astype(np.float32) for k, v in draw(*a).items()})
    config = replace(folder[0], copies=2)
    plain, tinted, changed = (
        take_batches(1, replace(config, **change), "rgb", seed)[0].tensors["rgb"]
        for change in ({}, {"color_jitter": 0.5}, {"randaugment": 1})
    )
    factors = torch.arange(8)[:, None, None, None] / 10 + 0.2
    assert (tinted - (factors * plain).clamp(max=255)).abs().max() <= 1
    drawn = RandAugment(operations=1, magnitude=9, size=SIZE, seed=seed).draw(np.arange(8))
    same = np.array([torch.equal(a, b) for a, b in zip(plain, changed, strict=True)])
    assert same[drawn["operation"][:, 0] == 0].all()
    moved = np.isin(drawn["operation"][:, 0], [OPERATIONS.index(name) for name in (*MOVING, "invert")])
    assert not same[moved].any()


def test_sounds_and_clouds_are_copied_too(tmp_path, rng, seed):
    waves = [np.arange(n * 16_000, (n + 1) * 16_000) // 4 % 30_000 for n in range(3)]
    write_modality(tmp_path, "train", "audio", ".flac", [encode_audio(w.astype(np.int16), 16_000) for w in waves])
    options = {"root": str(tmp_path), "batch": 8, "copies": COPIES, "threads": 2}
    config = DataConfig(**options, seconds=0.1)
    batch = take_batches(1, config, "audio", seed)[0]
    starts = random_offsets(np.full(8, 16_000 - 1600), batch.positions, seed=seed)
    samples = Cursor(3, seed, 8, copies=COPIES).samples_at(batch.positions)
    for row, (start, sample) in enumerate(zip(starts, samples, strict=True)):
        expected = waves[sample][start : start + 1600] / 32768
        assert np.abs(batch.tensors["audio"][row].numpy() - expected).max() < 1e-4
    assert batch.tensors["audio_length"].tolist() == [1600] * 8
    write_modality(tmp_path, "train", "points", ".npy", [encode_array(rng.random((50, 3))) for _ in range(3)])
    config = DataConfig(**options, points=20)
    check_resume(config, "points", seed)
    clouds = take_batches(1, config, "points", seed)[0].tensors["points"]
    assert clouds.shape == (8, 20, 3) and len({row.numpy().tobytes() for row in clouds}) == 8


def test_evaluation_and_random_data(folder, seed):
    config, _ = folder
    batches = list(evaluation_batches(config, "train", ("rgb",), 3))
    assert [len(batch) for batch in batches] == [3, 2] and len(batches[0].tensors["rgb"]) == 3
    noise = take_batches(1, replace(config, source="random"), "rgb", seed)[0].tensors["rgb"].view(2, COPIES, -1)
    assert torch.equal(noise, noise[:, :1].expand(-1, COPIES, -1)) and not torch.equal(noise[0], noise[1])
