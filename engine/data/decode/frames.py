"""Which frames of a video a clip takes, and where the clips of a video lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnitrunk.kernels.philox import uniform


@dataclass(frozen=True, kw_only=True)
class FrameRule:
    """How many clips of a video are shown, and which frames they have, as a function of (seed, position)."""

    frames: int
    """Of every clip."""
    stride: int = 1
    """A clip takes every n-th frame; of no account where `segments` is true."""
    segments: bool = False
    """Take one frame out of each of `frames` equal parts of the video instead."""
    views: int = 1
    """Clips of every video, evenly spread over it; more than one has no random place."""
    seed: int | None = None
    """None, as in evaluation, takes the middle: of the video, or of its segments."""

    def choose(self, totals: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """int32 (B, views, frames), none of them falling: frames of videos that have `totals` int64 (B,) of them."""
        if self.segments:
            return self._out_of_segments(totals, positions)[:, None]
        span = self.frames * self.stride
        if self.views > 1:
            first = spread_starts(totals, span, self.views)
        elif self.seed is None:
            first = center_starts(totals, span)[:, None]
        else:
            first = random_starts(totals, span, positions, seed=self.seed)[:, None]
        return np.stack([clip_frames(totals, column, self.frames, self.stride) for column in first.T], axis=1)

    def _out_of_segments(self, totals: np.ndarray, positions: np.ndarray) -> np.ndarray:
        if self.seed is None:
            return center_segments(totals, self.frames)
        return segment_frames(totals, uniform(self.seed, "segment frames", positions, self.frames))


def random_starts(totals: np.ndarray, span: int, positions: np.ndarray, *, seed: int) -> np.ndarray:
    """Uniform in [0, total - span], drawn from (seed, position) alone; 0 where the video is shorter than `span`."""
    return starts(totals, span, uniform(seed, "clip start", positions, 1)[:, 0])


def center_starts(totals: np.ndarray, span: int) -> np.ndarray:
    """The clip in the middle of every video."""
    return np.maximum(totals - span, 0) // 2


def spread_starts(totals: np.ndarray, span: int, views: int) -> np.ndarray:
    """First frames, int64 (B, views), of clips that cover a video evenly; of 300 frames and 4 clips 0, 75, 150, 225.

    Each clip begins a `views`-th of the video after the last (the released test protocol of Girdhar et al. 2022), or
    closer, so that the last one still fits; all of them at 0 where the video is shorter than `span`.
    """
    view, total = np.arange(views), totals[:, None]
    return np.minimum(view * total // views, view * np.maximum(total - span, 0) // (views - 1))


def starts(totals: np.ndarray, span: int, draws: np.ndarray) -> np.ndarray:
    """First frames, int64 (B,), for draws in [0, 1)."""
    room = np.maximum(totals - span, 0)
    return np.floor(draws * (room + 1)).astype(np.int64)


def clip_frames(totals: np.ndarray, first: np.ndarray, frames: int, stride: int) -> np.ndarray:
    """The frames of every clip, int32 (B, frames): first, first + stride, ...

    Where the next step would pass the end of the video, the last frame chosen is repeated (VideoMAE, Tong et al. 2022,
    and its released loader).
    """
    steps = np.minimum(np.arange(frames), (totals - 1 - first)[:, None] // stride)
    return (first[:, None] + stride * steps).astype(np.int32)


def segment_frames(totals: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """One frame of every segment, int32 (B, frames), for draws (B, frames) in [0, 1); uniform, both ends included.

    The sampling of temporal segment networks (Wang et al. 2016), as Girdhar et al. 2022 fine-tune with it.
    """
    bounds = _segment_bounds(totals, draws.shape[1])
    room = bounds[:, 1:] - bounds[:, :-1]
    return (bounds[:, :-1] + np.floor(draws * (room + 1)).astype(np.int64)).astype(np.int32)


def center_segments(totals: np.ndarray, frames: int) -> np.ndarray:
    """The middle of every segment, rounded down: int32 (B, frames)."""
    bounds = _segment_bounds(totals, frames)
    return ((bounds[:, :-1] + bounds[:, 1:]) // 2).astype(np.int32)


def _segment_bounds(totals: np.ndarray, frames: int) -> np.ndarray:
    """First frames of the segments, and the last frame: int64 (B, frames + 1); halves are rounded to even numbers."""
    return np.rint((totals - 1)[:, None] / frames * np.arange(frames + 1)).astype(np.int64)
