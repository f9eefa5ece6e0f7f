"""Accuracy by the length of clips: what a model of clips makes of fewer frames, or of more, than it was trained with.

Girdhar et al. 2022, section 4.4 and figure 5. Frames are taken at the same distance throughout, and shorter clips come
with proportionally more views, so that the same time of every video is seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from omnitrunk.engine import durable
from omnitrunk.engine.datasets import DataSet, data_sets
from omnitrunk.engine.evaluation.answers import answers
from omnitrunk.models import Omnivore

if TYPE_CHECKING:
    from omnitrunk.engine.config import RunConfig

FILE = "clip_lengths.json"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of the curve."""

    dataset: str
    frames: int
    """Of a clip."""
    frame_stride: int
    views: int
    """Clips of a video, over which logits are averaged."""
    top1: float


def clip_length_curve(config: RunConfig, model: nn.Module, device: torch.device, lengths: Sequence[int]) -> list[Point]:
    """The accuracy on every data set of clips at each of the lengths, in frames.

    ValueError for a model without such data sets, for clips in segments, which have no stride, and for lengths below 1.
    """
    sets = {name: entry for name, entry in data_sets(config).items() if entry.modalities == ("video",)}
    if not isinstance(model, Omnivore) or not sets:
        raise ValueError("--clip-lengths needs an Omnivore that has data sets of clips; model.video_sets names them")
    if min(lengths) < 1:
        raise ValueError(f"--clip-lengths {min(lengths)}: a clip has 1 frame or more")
    for entry in sets.values():
        if entry.data.frame_sampling != "stride":
            raise ValueError(
                f'--clip-lengths needs frames at one distance: set {entry.section}.frame_sampling = "stride"'
            )
    return [_point(config, model, device, entry, frames) for entry in sets.values() for frames in lengths]


def _point(config: RunConfig, model: nn.Module, device: torch.device, entry: DataSet, frames: int) -> Point:
    views = max(1, round(entry.data.frames * entry.data.views / frames))
    data = replace(entry.data, frames=frames, views=views)
    found = answers(config, model, device, {entry.name: replace(entry, data=data)})[entry.name]
    return Point(dataset=entry.name, frames=frames, frame_stride=data.frame_stride, views=views, top1=found.accuracy)


def table(points: Sequence[Point]) -> str:
    """The curve as text, a row for each length."""
    rows = (f"  {point.dataset:20} {point.frames:6} {point.views:6} {100 * point.top1:8.2f}%" for point in points)
    return "\n".join(["accuracy by clip length", f"  {'':20} {'frames':>6} {'views':>6} {'top-1':>9}", *rows])


def write_curve(folder: Path, points: Sequence[Point]) -> Path:
    """Put the curve next to the checkpoint it belongs to, as JSON."""
    durable.write_text(folder / FILE, json.dumps([vars(point) for point in points], indent=1) + "\n")
    return folder / FILE
