"""Takes clips out of encoded videos: which frames, and their decoding, crop, resize and flip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from omnitrunk.engine.data.decode.augment import RandAugment
from omnitrunk.engine.data.decode.dali import DaliPipeline, dali, encoded
from omnitrunk.engine.data.decode.images import Rectangle, crop_inputs, resize
from omnitrunk.engine.data.sample import Clip, EncodedSample
from omnitrunk.kernels.philox import uniform

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

Starts: TypeAlias = Callable[[np.ndarray, int, np.ndarray], np.ndarray]
"""(frames of each video int64 (B,), frames a clip spans, positions int64 (B,)) to the first frame of each clip."""


def random_starts(totals: np.ndarray, span: int, positions: np.ndarray, *, seed: int) -> np.ndarray:
    """Uniform in [0, total - span], drawn from (seed, position) alone; 0 where the video is shorter than `span`."""
    return starts(totals, span, uniform(seed, "clip start", positions, 1)[:, 0])


def center_starts(totals: np.ndarray, span: int, positions: np.ndarray) -> np.ndarray:
    """The clip in the middle of every video: what evaluation sees at every position."""
    return np.maximum(totals - span, 0) // 2


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


class VideoDecoder:
    """Turns up to `batch` encoded videos into clips: video uint8 (B, frames, size, size, 3), RGB.

    All frames of a clip are cut by one rectangle, resized (bicubic with antialiasing), mirrored, and changed by
    `augment`, alike. On a GPU the frames are decoded there.
    """

    def __init__(
        self,
        first: Starts,
        rectangle: Rectangle,
        *,
        frames: int,
        stride: int,
        size: int,
        batch: int,
        threads: int,
        device: torch.device | str,
        augment: RandAugment | None = None,
    ) -> None:
        self._first = first
        self._rectangle = rectangle
        self._frames = frames
        self._stride = stride
        self._size = size
        self._augment = augment
        self._pipeline = DaliPipeline(
            self._graph, ("video",), batch=batch, threads=threads, device=device, conditional=augment is not None
        )

    def submit(self, rows: Sequence[EncodedSample]) -> None:
        """Starts decoding one batch and returns."""
        clips = [row.facts[0] for row in rows]
        assert all(isinstance(clip, Clip) for clip in clips)
        totals, heights, widths = np.array([clip[:3] for clip in clips], dtype=np.int64).T
        positions = np.array([row.position for row in rows], dtype=np.int64)
        first = self._first(totals, self._frames * self._stride, positions)
        crop = self._rectangle(heights, widths, positions)
        inputs = {"video": encoded([row.files[0] for row in rows])}
        inputs["frames"] = clip_frames(totals, first, self._frames, self._stride)
        if self._augment:
            inputs |= self._augment.draw(positions)
        self._pipeline.submit(inputs | crop._asdict())

    def collect(self) -> dict[str, torch.Tensor]:
        """Waits for the clips of the batch in flight."""
        return {"video": self._pipeline.collect()[0]}

    def close(self) -> None:
        """Frees the pipeline."""
        self._pipeline.close()

    def _graph(self, modalities: Sequence[str], on_gpu: bool) -> list[DataNode]:
        fn, types = dali("fn"), dali("types")
        anchor, shape, flip = crop_inputs()
        frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
        data = fn.external_source(name=modalities[0], dtype=types.UINT8, ndim=1)
        clip = fn.decoders.video(data, frames=frames, device="mixed" if on_gpu else "cpu")
        cut = resize(fn.slice(clip, anchor, shape, axis_names="HW"), flip, self._size)
        return [self._augment.apply(cut, self._size) if self._augment else cut]
