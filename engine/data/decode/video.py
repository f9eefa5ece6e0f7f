"""Takes clips out of encoded videos: decoding, crop, resize and flip of the frames that a rule chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from omnitrunk.engine.data.decode.augmentation import UNCHANGED, Augmentation
from omnitrunk.engine.data.decode.dali import DaliPipeline, dali, encoded
from omnitrunk.engine.data.decode.decoder import by_row, by_sample, row_positions
from omnitrunk.engine.data.decode.frames import FrameRule
from omnitrunk.engine.data.decode.images import Rectangle, crop_inputs, resize
from omnitrunk.engine.data.sample import Clip, EncodedSample

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode


class VideoDecoder:
    """Turns up to `batch` encoded videos into clips: video uint8 (R, frames, size, size, 3), RGB.

    Each of the `rule.views` clips of a video is shown in `copies` rows in a row. All frames of a row are cut by one
    rectangle, resized (bicubic with antialiasing), mirrored, and changed by `augment`, alike. A frame is decoded once,
    in however many clips and rows it is; on a GPU that happens there.
    """

    def __init__(
        self,
        rule: FrameRule,
        rectangle: Rectangle,
        *,
        size: int,
        batch: int,
        threads: int,
        device: torch.device | str,
        copies: int = 1,
        augment: Augmentation = UNCHANGED,
    ) -> None:
        self._rule = rule
        self._rectangle = rectangle
        self._size = size
        self._rows = rule.views * copies
        self._copies = copies
        self._augment = augment
        self._pipeline = DaliPipeline(
            self._graph, ("video",), batch=batch, threads=threads, device=device, conditional=augment.conditional
        )

    def submit(self, rows: Sequence[EncodedSample]) -> None:
        """Starts decoding one batch and returns."""
        clips = [row.facts[0] for row in rows]
        assert all(isinstance(clip, Clip) for clip in clips)
        totals, heights, widths = np.array([clip[:3] for clip in clips], dtype=np.int64).T
        positions = row_positions(rows, self._rows)
        crop = self._rectangle(heights.repeat(self._rows), widths.repeat(self._rows), positions)
        drawn = self._augment.draw(positions) | crop._asdict()
        inputs = {name: by_sample(values, self._rows) for name, values in drawn.items()}
        inputs |= _frame_inputs(self._rule.choose(totals, positions[:: self._rows]))
        self._pipeline.submit(inputs | {"video": encoded([row.files[0] for row in rows])})

    def collect(self) -> dict[str, torch.Tensor]:
        """Waits for the clips of the batch in flight."""
        return {"video": by_row(self._pipeline.collect())}

    def close(self) -> None:
        """Frees the pipeline."""
        self._pipeline.close()

    def _graph(self, modalities: Sequence[str], on_gpu: bool) -> list[DataNode]:
        fn, types = dali("fn"), dali("types")
        anchor, shape, flip = crop_inputs()
        drawn = self._augment.inputs()
        frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
        data = fn.external_source(name=modalities[0], dtype=types.UINT8, ndim=1)
        clips = [fn.decoders.video(data, frames=frames, device="mixed" if on_gpu else "cpu")]
        if self._rule.views > 1:
            places = fn.external_source(name="places", dtype=types.INT32, ndim=2)
            clips = [fn.sequence_rearrange(clips[0], new_order=places[view]) for view in range(self._rule.views)]
        shown = []
        for row in range(self._rows):
            cut = fn.slice(clips[row // self._copies], anchor[row], shape[row], axis_names="HW")
            shown.append(self._augment.change(resize(cut, flip[row], self._size), drawn, row))
        return shown


def _frame_inputs(chosen: np.ndarray) -> dict[str, np.ndarray | list[np.ndarray]]:
    """Frames to decode for clips int32 (B, views, frames): those of the one clip, or those of all clips once each.

    With several clips, `places` int32 (B, views, frames) tells which of the decoded frames make up each.
    """
    if chosen.shape[1] == 1:
        return {"frames": chosen[:, 0]}
    found = [np.unique(clips, return_inverse=True) for clips in chosen]
    places = np.stack([place.reshape(chosen.shape[1:]) for _, place in found])
    return {"frames": [frames for frames, _ in found], "places": places.astype(np.int32)}
