from __future__ import annotations

import logging
import struct
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from omnitrunk.engine.data import DataConfig, Loader, evaluation_batches
from omnitrunk.engine.data.cursor import Cursor
from omnitrunk.engine.data.decode.frames import clip_frames, random_starts, starts
from omnitrunk.engine.data.formats import matroska
from omnitrunk.engine.data.sample import Clip
from omnitrunk.engine.data.verify.images import BadFile
from omnitrunk.engine.data.verify.video import verify_video
from tests.engine.data_files import check_resume, encode_video, levels, same_batch, take_batches, write_modality

pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
pytest.importorskip("av", reason='needs PyAV: pip install "omnitrunk[world]"')

FRAMES, STRIDE, SIZE = 4, 2, 32
TOTALS = list(range(3, 15))
# (frames of the video, first frame, last step that still advances) of VideoMAE's released pre-training loader for 16
# frames of stride 4; its loader draws the first frame from range(total - 63).
RELEASED = [
    (300, 175, 15),
    (250, 25, 15),
    (100, 3, 15),
    (65, 1, 15),
    (64, 0, 15),
    (63, 0, 15),
    (40, 0, 9),
    (20, 0, 4),
    (10, 0, 2),
]


@pytest.fixture(scope="module")
def videos():
    """Videos of 3 to 14 frames; frame k of n is of the k-th of n greys."""
    return [encode_video(levels(total)) for total in TOTALS]


@pytest.fixture(scope="module")
def config(tmp_path_factory, videos):
    root = tmp_path_factory.mktemp("clips")
    for split in ("train", "val"):
        write_modality(root, split, "video", ".webm", videos)
    return DataConfig(root=str(root), batch=8, size=SIZE, frames=FRAMES, frame_stride=STRIDE, threads=2)


def seen(clip, total):
    """Which of the `total` greys each frame of a clip has."""
    greys = np.linspace(10, 245, total)
    return np.abs(clip.double().mean(dim=(1, 2, 3)).numpy()[:, None] - greys).argmin(axis=1)


@pytest.mark.parametrize(("total", "first", "steps"), RELEASED)
def test_frames_are_those_of_the_released_loader(total, first, steps):
    expected = [first + 4 * min(k, steps) for k in range(16)]
    assert clip_frames(np.array([total]), np.array([first]), 16, 4)[0].tolist() == expected
    choices = max(total - 63, 1)
    draw = (first + 0.5) / choices
    assert starts(np.array([total]), 64, np.array([draw])).tolist() == [first]


def test_first_frames_cover_their_range_evenly_and_depend_on_the_position(seed):
    positions = np.arange(6000)
    first = random_starts(np.full(6000, 74), 64, positions, seed=seed)
    counts = np.bincount(first, minlength=11)
    assert len(counts) == 11 and np.abs(counts / 6000 - 1 / 11).max() < 0.02
    half = random_starts(np.full(3000, 74), 64, positions[3000:], seed=seed)
    assert np.array_equal(half, first[3000:])


def test_clips_are_the_chosen_frames_of_the_chosen_video(config, seed):
    for batch in take_batches(4, config, "video", seed):
        clips = batch.tensors["video"]
        assert clips.shape == (8, FRAMES, SIZE, SIZE, 3) and str(clips.dtype) == "torch.uint8"
        for clip, position, label in zip(clips, batch.positions, batch.labels, strict=True):
            sample = sample_at(config, seed, position)
            total = np.array([TOTALS[sample]])
            first = random_starts(total, FRAMES * STRIDE, np.array([position]), seed=seed)
            expected = clip_frames(total, first, FRAMES, STRIDE)[0]
            assert seen(clip, total[0]).tolist() == expected.tolist()
            assert label == sample * 2 // len(TOTALS)


def sample_at(config, seed, position):
    return int(Cursor(len(TOTALS), seed, config.batch).samples_at(np.array([position]))[0])


def test_one_rectangle_and_one_flip_serve_all_frames_of_a_clip(tmp_path, seed):
    """Left half dark, right half bright: a flip or a crop shows in every frame, or in none."""
    frames = np.full((8, 48, 64, 3), 30, np.uint8)
    frames[:, :, 32:] = 220
    write_modality(tmp_path, "train", "video", ".webm", [encode_video(frames)] * 4)
    config = DataConfig(root=str(tmp_path), batch=16, size=SIZE, frames=4, frame_stride=1, crop_area=(0.5, 1.0))
    batch = take_batches(1, config, "video", seed)[0]
    clips = batch.tensors["video"].double().mean(dim=(2, 4))  # (B, T, columns)
    assert (clips - clips[:, :1]).abs().max() < 12
    mirrored = clips[:, 0, 0] > clips[:, 0, -1]
    assert 0 < mirrored.sum() < 16


def test_evaluation_shows_the_middle_of_every_video_once(config):
    batches = list(evaluation_batches(config, "val", ("video",), 5))
    assert [len(batch) for batch in batches] == [5, 5, 2]
    for batch in batches:
        for clip, place in zip(batch.tensors["video"], batch.positions, strict=True):
            total = TOTALS[place]
            first = max(total - FRAMES * STRIDE, 0) // 2
            expected = [first + STRIDE * min(k, (total - 1 - first) // STRIDE) for k in range(FRAMES)]
            assert seen(clip, total).tolist() == expected


def test_a_run_is_the_same_when_resumed_on_other_threads_and_over_ranks(config, seed):
    check_resume(config, "video", seed)


@pytest.mark.parametrize(
    ("codec", "container", "name"),
    [
        ("libvpx-vp9", "webm", "VP9"),
        ("libvpx", "webm", "VP8"),
        ("libvpx-vp9", "matroska", "VP9"),
        ("libvpx-vp9", "mp4", "VP9"),
        ("mjpeg", "avi", "MJPEG"),
        ("mjpeg", "matroska", "MJPEG"),
        ("libx264", "mp4", "H.264"),
        ("libx264", "mov", "H.264"),
        ("libx264", "matroska", "H.264"),
        ("libx265", "mp4", "HEVC"),
        ("mpeg4", "avi", "MPEG-4"),
        ("mpeg4", "mp4", "MPEG-4"),
    ],
)
def test_containers_tell_codec_size_and_frames(codec, container, name):
    data = encode_video(levels(7), codec, container)
    assert verify_video(data) == Clip(7, 48, 64, name)
    if name in ("VP8", "VP9", "MJPEG"):
        assert verify_video(data, "cpu").codec == name
        return
    with pytest.raises(BadFile, match=f"{name} video cannot be decoded on cpu; train on a GPU, or .* libvpx-vp9"):
        verify_video(data, "cpu")
    assert verify_video(data, "cuda").codec == name


@pytest.mark.parametrize(
    ("codec", "container", "suffix"),
    [
        ("libvpx", "webm", ".webm"),
        ("libvpx-vp9", "matroska", ".mkv"),
        ("libvpx-vp9", "mp4", ".MP4"),
        ("mjpeg", "avi", ".avi"),
    ],
)
def test_what_passes_as_decodable_decodes(codec, container, suffix, tmp_path, seed):
    write_modality(tmp_path, "train", "video", suffix, [encode_video(levels(9), codec, container)] * 2)
    config = DataConfig(root=str(tmp_path), batch=2, size=SIZE, frames=4, frame_stride=2, bad_fraction=0.0)
    with Loader(config, ("video",), seed=seed) as loader:
        clips = next(loader).tensors["video"]
        assert not loader.faults.bad
    for clip in clips:
        assert (np.diff(seen(clip, 9)) == 2).all()


@pytest.mark.parametrize(
    ("codec", "container"), [("libvpx-vp9", "webm"), ("libx264", "mp4"), ("libx264", "mov"), ("mjpeg", "avi")]
)
def test_a_file_cut_anywhere_is_found(codec, container):
    data = encode_video(levels(4, 16, 16), codec, container)
    whole = verify_video(data)
    for length in [*range(0, len(data), 1 + len(data) // 400), len(data) - 1]:
        try:
            found = verify_video(data[:length])
        except BadFile:
            continue
        # An AVI may end in an index, and a QuickTime file in tags, that nothing needs.
        assert found == whole and length > len(data) // 2


def test_a_live_recording_of_unknown_length_is_read():
    data = encode_video(levels(5), container="webm")
    segment = data.index(b"\x18\x53\x80\x67") + 4
    live = bytearray(data)
    live[segment : segment + 8] = b"\x01" + b"\xff" * 7
    cluster = data.index(b"\x1f\x43\xb6\x75") + 4
    live[cluster : cluster + 8] = b"\x01" + b"\xff" * 7 if data[cluster] == 1 else data[cluster : cluster + 8]
    assert verify_video(bytes(live)) == Clip(5, 48, 64, "VP9")


def test_reference_pictures_that_are_not_shown_are_not_counted():
    data = bytearray(encode_video(levels(5), "libvpx"))
    blocks = [start for name, start, _ in matroska._elements(bytes(data)) if name == matroska.SIMPLE_BLOCK]
    data[blocks[2] + 3] |= matroska.INVISIBLE  # after the number of the track and two bytes of time
    assert verify_video(bytes(data)) == Clip(4, 48, 64, "VP8")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>" + bytes(20), "not a WebM, Matroska, MP4 or AVI file: it begins with 3c 68 74 6d"),
        (b"\x1a\x45\xdf\xa3", "truncated"),
        (struct.pack(">I4s", 16, b"ftyp") + bytes(8), "MP4 file without a video track"),
        (b"RIFF" + struct.pack("<I", 4) + b"AVI ", "AVI file without a video stream"),
    ],
)
def test_other_files_are_named_for_what_they_are(data, reason):
    with pytest.raises(BadFile, match=reason):
        verify_video(data)


def test_fragmented_mp4_is_refused_with_the_way_out():
    data = encode_video(levels(4), "libx264", "mp4", {"movflags": "frag_keyframe+empty_moov"})
    with pytest.raises(BadFile, match=r"fragmented MP4.*ffmpeg -i IN -c copy"):
        verify_video(data)


def test_damage_raises_nothing_but_bad_file(seed):
    rng = np.random.default_rng(seed)
    whole = [
        encode_video(levels(3, 16, 16), *kind)
        for kind in (("libvpx-vp9", "webm"), ("mjpeg", "avi"), ("libx264", "mp4"))
    ]
    for _ in range(600):
        data = bytearray(whole[rng.integers(len(whole))])
        for at in rng.integers(0, len(data), 8):
            data[at] = rng.integers(256)
        with suppress(BadFile):
            assert verify_video(bytes(data)).frames > 0


def undecodable(data):
    """The same WebM file with nonsense in place of every frame."""
    damaged = bytearray(data)
    for name, start, end in matroska._elements(data):
        if name in (matroska.SIMPLE_BLOCK, matroska.BLOCK):
            damaged[start + 4 : end] = b"\xff" * (end - start - 4)
    return bytes(damaged)


def test_bad_videos_are_replaced_counted_and_named(tmp_path, videos, seed, caplog):
    contents = [videos[i % len(videos)] for i in range(24)]
    contents[0] = contents[0][:-40]
    contents[5] = b""
    contents[6] = encode_video(levels(4), "libx264", "mp4")
    contents[9] = undecodable(videos[9])
    contents[20] = b"\x00" * 900
    paths = write_modality(tmp_path, "train", "video", ".webm", contents)
    reasons = {0: "truncated", 5: "empty", 6: "H.264 video cannot be decoded", 9: "does not decode", 20: "not a WebM"}
    config = DataConfig(root=str(tmp_path), batch=8, size=SIZE, frames=2, frame_stride=1, bad_fraction=0.6, threads=2)
    with caplog.at_level(logging.WARNING), Loader(config, ("video",), seed=seed) as loader:
        batches = [next(loader) for _ in range(9)]
        assert loader.replaced >= 3 * len(reasons)
        named = dict(loader.faults.named)
    assert named.keys() == {str(paths[i]) for i in reasons}
    for i, reason in reasons.items():
        assert reason in named[str(paths[i])]
    again = take_batches(9, config, "video", seed)
    assert all(same_batch(a, b) for a, b in zip(batches, again, strict=True))


def test_random_clips_look_like_those_of_files(config, seed):
    noise = take_batches(2, replace(config, source="random"), "video", seed)
    real = take_batches(1, config, "video", seed)[0].tensors["video"]
    assert noise[0].tensors["video"].shape == real.shape and noise[0].tensors["video"].dtype == real.dtype
    assert not np.array_equal(noise[0].tensors["video"], noise[1].tensors["video"])
