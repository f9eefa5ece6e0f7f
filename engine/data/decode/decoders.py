"""The decoder for the modalities of a run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from omnitrunk.engine.data.config import DataConfig
from omnitrunk.engine.data.decode.audio import AudioDecoder, center_offsets, random_offsets
from omnitrunk.engine.data.decode.augment import RandAugment
from omnitrunk.engine.data.decode.crop import center_crop, random_crop
from omnitrunk.engine.data.decode.decoder import Decoder
from omnitrunk.engine.data.decode.images import ImageDecoder
from omnitrunk.engine.data.decode.points import PointDecoder, PointRule
from omnitrunk.engine.data.decode.video import VideoDecoder, center_starts, random_starts

ALONE = ("video", "audio", "points")
"""Modalities that are all there is of a sample; the others are maps aligned with one picture."""
EVALUATION_KEY = 0
"""Takes the place of the run's seed where an evaluation must choose: every evaluation sees the same."""


def make_decoder(
    config: DataConfig, strides: Mapping[str, int], *, batch: int, seed: int | None, device: torch.device | str
) -> Decoder:
    """The decoder of up to `batch` samples with the modalities of `strides`.

    With a `seed`, what is random in training is drawn from it and the position; with None, as in evaluation, pictures,
    clips and recordings are cut in the middle and nothing is changed at random.
    """
    modality = next(iter(strides))
    threads = config.threads
    if modality == "points":
        scale, shift = ((1.0, 1.0), 0.0) if seed is None else (config.point_scale, config.point_shift)
        changes = {"scale": scale, "stretch": config.point_stretch, "shift": shift}
        rule = PointRule(count=config.points, normalize=config.normalize_points, **changes)
        return PointDecoder(rule, parts=config.parts, seed=EVALUATION_KEY if seed is None else seed, threads=threads)
    if modality == "audio":
        offsets = center_offsets if seed is None else partial(random_offsets, seed=seed)
        return AudioDecoder(offsets, samples=config.waveform, rate=config.sample_rate, batch=batch, threads=threads)
    if seed is None:
        rectangle, first = center_crop, center_starts
    else:
        rectangle = partial(random_crop, seed=seed, area=config.crop_area, flip=config.flip)
        first = partial(random_starts, seed=seed)
    augment = _rand_augment(config, strides, seed)
    common = {"size": config.size, "batch": batch, "threads": threads, "device": device, "augment": augment}
    if modality == "video":
        return VideoDecoder(first, rectangle, frames=config.frames, stride=config.frame_stride, **common)
    return ImageDecoder(strides, rectangle, **common)


def _rand_augment(config: DataConfig, strides: Mapping[str, int], seed: int | None) -> RandAugment | None:
    """None where nothing is augmented; ValueError where it would tear pictures and their maps apart."""
    if seed is None or not config.randaugment:
        return None
    if len(strides) > 1:
        raise ValueError(
            f"data.randaugment = {config.randaugment} moves pictures, but not what is aligned with them "
            f"({', '.join(strides)}): set it to 0"
        )
    return RandAugment(operations=config.randaugment, magnitude=config.randaugment_magnitude, seed=seed)


def check_together(modalities: Mapping[str, int]) -> None:
    """ValueError for modalities that cannot be in one sample."""
    alone = [modality for modality in modalities if modality in ALONE]
    if alone and len(modalities) > 1:
        raise ValueError(
            f"{', '.join(modalities)} cannot be read as one sample: {alone[0]} is read alone, only pictures and maps "
            "are aligned; give each its own run or data set"
        )
