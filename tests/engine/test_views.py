from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omnitrunk.engine.config import load
from omnitrunk.engine.data import DataConfig, Loader, evaluation_batches, idle_fields
from omnitrunk.engine.data.decode.crop import spread_anchors, spread_squares
from omnitrunk.engine.data.decode.decoders import check_together
from omnitrunk.engine.data.decode.frames import FrameRule, clip_frames, segment_frames, spread_starts
from omnitrunk.kernels.philox import uniform
from tests.engine.data_files import check_resume, encode_video, levels, write_modality

SIZE, FRAMES = 32, 4
TOTALS = [9, 23, 30, 5]
# Frames of the released evaluation sampler of temporal segments: (frames of the video, segments, chosen).
SEGMENTS = [
    (48, 16, [1, 4, 7, 10, 13, 16, 19, 22, 25, 27, 30, 33, 36, 39, 42, 45]),
    (33, 8, [2, 6, 10, 14, 18, 22, 26, 30]),
    (100, 32, [*range(1, 11, 3), 13, *range(17, 42, 3), 44, *range(48, 73, 3), 75, 78, 82, 85, 88, 91, 94, 97]),
    (20, 32, sorted([*range(19), 1, 2, 4, 5, 7, 8, 10, 11, 12, 14, 15, 17, 18])),
]
# Top and left of the three squares of the released test protocol: (height, width, size, offsets).
SQUARES = [
    (224, 398, 224, [(0, 0), (0, 87), (0, 174)]),
    (340, 224, 224, [(0, 0), (58, 0), (116, 0)]),
    (224, 224, 224, [(0, 0), (0, 0), (0, 0)]),
    (225, 300, 224, [(1, 0), (1, 38), (1, 76)]),
    (397, 224, 224, [(0, 0), (87, 0), (173, 0)]),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Videos of a bright stripe that wanders from frame to frame and a grey that rises, 48 x 80 pixels."""
    pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
    pytest.importorskip("av", reason='needs PyAV: pip install "omnitrunk[world]"')
    root = tmp_path_factory.mktemp("clips")
    videos = []
    for total in TOTALS:
        frames = levels(total, 48, 80) // 2
        frames[:, :, 60:] += 100
        videos.append(encode_video(frames))
    for split in ("train", "val"):
        write_modality(root, split, "video", ".webm", videos)
    return DataConfig(root=str(root), batch=4, size=SIZE, frames=FRAMES, frame_stride=2, threads=2, flip=False)


def shown(clips, total):
    """Which of the `total` greys the left of each frame of (T, H, W, 3) has."""
    greys = np.linspace(10, 245, total).astype(np.uint8) // 2
    left = clips[:, :, :4].double().mean(dim=(1, 2, 3)).numpy()
    return np.abs(left[:, None] - greys).argmin(axis=1).tolist()


@pytest.mark.parametrize(("total", "frames", "chosen"), SEGMENTS)
def test_the_middle_of_segments_is_that_of_the_released_sampler(total, frames, chosen):
    rule = FrameRule(frames=frames, segments=True)
    assert rule.choose(np.array([total]), np.array([0])).tolist() == [[chosen]]


def test_training_draws_every_frame_of_a_segment_alike_both_ends_included(seed):
    totals, positions = np.full(20_000, 13), np.arange(20_000)
    found = FrameRule(frames=3, segments=True, seed=seed).choose(totals, positions)[:, 0]
    for segment, (start, end) in enumerate([(0, 4), (4, 8), (8, 12)]):
        counts = np.bincount(found[:, segment], minlength=13)
        assert counts[start : end + 1].sum() == 20_000 and np.abs(counts[start : end + 1] / 20_000 - 0.2).max() < 0.02
    later = FrameRule(frames=3, segments=True, seed=seed).choose(totals[5000:], positions[5000:])[:, 0]
    assert np.array_equal(later, found[5000:])
    draws = uniform(seed, "any", positions[:100], 3)
    assert np.array_equal(segment_frames(totals[:100], 0 * draws), np.tile([0, 4, 8], (100, 1)))


def test_clips_are_spread_as_in_the_released_protocol():
    for total, span, views, first in [
        (160, 32, 4, [0, 40, 80, 120]),
        (64, 32, 3, [0, 16, 32]),
        (300, 64, 4, [0, 75, 150, 225]),
        (31, 32, 4, [0, 0, 0, 0]),
        (100, 32, 2, [0, 50]),
    ]:
        assert spread_starts(np.array([total]), span, views).tolist() == [first]
    wanted = [list(range(start, start + 31, 2)) for start in (0, 20, 40, 60)]
    found = [clip_frames(np.array([100]), np.array([start]), 16, 2)[0].tolist() for start in (0, 20, 40, 60)]
    assert found == wanted


@pytest.mark.parametrize(("height", "width", "size", "offsets"), SQUARES)
def test_squares_lie_where_the_released_protocol_has_them(height, width, size, offsets):
    heights, widths, sizes = (np.full(3, value) for value in (height, width, size))
    assert spread_anchors(heights, widths, sizes, np.arange(3), count=3).tolist() == [list(pair) for pair in offsets]
    crop = spread_squares(np.repeat(heights, 2), np.repeat(widths, 2), np.arange(6), count=3)
    assert (crop.shape == min(height, width)).all() and not crop.flip.any()
    assert (crop.anchor + crop.shape).max(axis=0).tolist() == [height, width]
    assert np.array_equal(crop.anchor[:3], crop.anchor[3:])


def test_all_views_of_a_video_stand_in_a_row(config):
    config = replace(config, views=3, crops=3)
    (batch,) = evaluation_batches(config, "val", ("video",), 4)
    clips = batch.tensors["video"]
    assert clips.shape == (36, FRAMES, SIZE, SIZE, 3) and len(batch) == len(batch.labels) == 4
    for row, total in enumerate(TOTALS):
        own = clips[9 * row : 9 * row + 9]
        totals = np.array([total])
        for view, start in enumerate(spread_starts(totals, 2 * FRAMES, 3)[0]):
            frames = clip_frames(totals, np.array([start]), FRAMES, 2)[0].tolist()
            assert shown(own[3 * view], total) == frames
        # The bright part begins at column 60; the squares are 48 wide and begin at columns 0, 16 and 32.
        bright = own[:3, 0].double().mean(dim=(1, 3))
        edges = [(columns - columns[0] > 50).nonzero().flatten()[:1].tolist() for columns in bright]
        assert [edge[0] if edge else SIZE for edge in edges] == [
            SIZE,
            pytest.approx(29.5, abs=1),
            pytest.approx(19, abs=1),
        ]


def test_views_are_those_that_one_at_a_time_would_be_and_training_has_none(config, seed):
    views = replace(config, views=2)
    (both,) = evaluation_batches(views, "val", ("video",), 4)
    (one,) = evaluation_batches(config, "val", ("video",), 4)
    assert len(one.tensors["video"]) == 4
    middle = [clip_frames(np.array([n]), np.array([max(n - 8, 0) // 2]), FRAMES, 2)[0].tolist() for n in TOTALS]
    assert [shown(clip, n) for clip, n in zip(one.tensors["video"], TOTALS, strict=True)] == middle
    assert torch.equal(both.tensors["video"][6], both.tensors["video"][7])  # five frames: both clips are all of it
    with Loader(views, ("video",), seed=seed) as ours, Loader(config, ("video",), seed=seed) as plain:
        assert torch.equal(next(ours).tensors["video"], next(plain).tensors["video"])


def test_segments_are_decoded_and_short_videos_are_bad(config, seed):
    config = replace(config, frame_sampling="segments", frames=6, bad_fraction=0.9)
    batches = evaluation_batches(config, "val", ("video",), 4)
    batch = next(batches)
    assert batch.positions.tolist() == [0, 1, 2]
    rule = FrameRule(frames=6, segments=True)
    for clip, total in zip(batch.tensors["video"], TOTALS, strict=False):
        assert shown(clip, total) == rule.choose(np.array([total]), np.array([0]))[0, 0].tolist()
    check_resume(config, "video", seed)
    with Loader(config, ("video",), seed=seed) as loader:
        for _ in range(4):
            next(loader)
        (reason,) = loader.faults.named.values()
    assert reason.startswith(
        "5 video frames are too few for 6 segments: lower data.frames, or set data.repeat_frames ="
    )
    with (
        pytest.raises(ValueError, match="too few for 40 segments") as error,
        Loader(replace(config, frames=40), ("video",), seed=seed) as loader,
    ):
        next(loader)
    assert "\n" not in str(error.value)


def test_short_videos_show_frames_again_where_that_is_wanted(config, seed):
    config = replace(config, frame_sampling="segments", repeat_frames=True, frames=12, bad_fraction=0.0)
    (batch,) = evaluation_batches(config, "val", ("video",), 4)
    assert batch.positions.tolist() == [0, 1, 2, 3]
    rule = FrameRule(frames=12, segments=True)
    for clip, total in zip(batch.tensors["video"], TOTALS, strict=True):
        assert shown(clip, total) == rule.choose(np.array([total]), np.array([0]))[0, 0].tolist()
    check_resume(config, "video", seed)
    with Loader(config, ("video",), seed=seed) as loader:
        clips = torch.cat([next(loader).tensors["video"] for _ in range(3)])
        assert not loader.faults.named and not loader.replaced
    assert clips.shape == (12, 12, SIZE, SIZE, 3)


@pytest.mark.parametrize("training", [False, True])
def test_segments_of_short_videos_never_fall_and_lie_inside(training, seed):
    totals = np.repeat(np.arange(1, 40), 50)
    chosen = FrameRule(frames=32, segments=True, seed=seed if training else None).choose(totals, np.arange(len(totals)))
    assert chosen.shape == (len(totals), 1, 32)
    assert (np.diff(chosen) >= 0).all() and (chosen >= 0).all() and (chosen < totals[:, None, None]).all()


@pytest.mark.parametrize("name", ["ssv2", "ek100"])
def test_recipes_of_data_sets_with_short_videos_use_them(name):
    config = load(Path(__file__).parents[2] / "configs" / f"finetune_omnivore_{name}.toml")
    assert config.data.frame_sampling == "segments" and config.data.least_frames == 1


def test_transparent_clips_are_decoded_as_color(tmp_path, seed):
    av = pytest.importorskip("av", reason='needs PyAV: pip install "omnitrunk[world]"')
    pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
    path = tmp_path / "train" / "video" / "a" / "0.webm"
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w", format="webm") as file:
        stream = file.add_stream("libvpx-vp9", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuva420p"
        for grey in range(8):
            rgba = np.full((48, 64, 4), 20 * grey + 40, np.uint8)
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="yuva420p")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    config = DataConfig(root=str(tmp_path), batch=1, size=SIZE, frames=4, frame_stride=2, threads=1)
    with Loader(config, ("video",), seed=seed) as loader:
        clip = next(loader).tensors["video"]
    assert clip.shape == (1, 4, SIZE, SIZE, 3)
    assert (clip.double().mean(dim=(0, 2, 3, 4)) - torch.tensor([40.0, 80, 120, 160])).abs().max() < 4
    with pytest.raises(ValueError, match="video, depth cannot be read as one sample"):
        check_together({"video": 1, "depth": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": 0}, r"data\.views is 0: use 1 or more"),
        ({"crops": 0}, r"data\.crops is 0: use 1 or more"),
        ({"frame_sampling": "all"}, r"data\.frame_sampling is 'all': use stride or segments"),
        ({"frame_sampling": "segments", "views": 4}, r"data\.views is 4: with .* a clip spans the video, use 1"),
    ],
)
def test_a_mistake_is_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**change)


def test_options_without_effect_are_named():
    config = DataConfig(views=2, crops=3)
    fields = {"views", "crops", "frame_sampling", "frame_stride"}
    assert not fields & idle_fields(config, ["video"]).keys()
    assert (
        fields <= idle_fields(config, ["rgb"]).keys()
        and fields <= idle_fields(replace(config, source="random"), ["video"]).keys()
    )
    segments = idle_fields(DataConfig(frame_sampling="segments"), ["video"])
    assert "frame_stride" in segments and "repeat_frames" not in segments
    assert idle_fields(config, ["video"])["repeat_frames"] == 'data.frame_sampling is "stride"'
