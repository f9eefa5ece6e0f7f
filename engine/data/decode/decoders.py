"""The decoder for the modalities of a run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from omnitrunk.engine.data.config import DataConfig
from omnitrunk.engine.data.decode.audio import AudioDecoder, center_offsets, random_offsets
from omnitrunk.engine.data.decode.augment import RandAugment
from omnitrunk.engine.data.decode.augmentation import Augmentation, Augmentations
from omnitrunk.engine.data.decode.crop import center_crop, random_crop, spread_squares
from omnitrunk.engine.data.decode.decoder import Decoder
from omnitrunk.engine.data.decode.disparity import NORMS, Disparity
from omnitrunk.engine.data.decode.frames import FrameRule
from omnitrunk.engine.data.decode.images import ImageDecoder, Rectangle
from omnitrunk.engine.data.decode.jitter import ColorJitter
from omnitrunk.engine.data.decode.points import PointDecoder, PointRule
from omnitrunk.engine.data.decode.video import VideoDecoder

ALONE = ("video", "audio", "points")
"""Modalities that are all there is of a sample; the others are maps aligned with one picture."""
MOVABLE = ("rgb", "depth", "video")
"""Modalities that RandAugment can move: between the ids of a class map there is nothing to interpolate."""
EVALUATION_KEY = 0
"""Takes the place of the run's seed where an evaluation must choose: every evaluation sees the same."""


def make_decoder(
    config: DataConfig, strides: Mapping[str, int], *, batch: int, seed: int | None, device: torch.device | str
) -> Decoder:
    """The decoder of up to `batch` samples with the modalities of `strides`.

    With a `seed`, what is random in training is drawn from it and the position, `config.copies` times for a sample;
    with None, as in evaluation, pictures, clips and recordings are cut in the middle and nothing is changed at random.
    """
    modality = next(iter(strides))
    copies = 1 if seed is None else config.copies
    if modality == "points":
        return _point_decoder(config, seed, copies)
    if modality == "audio":
        offsets = center_offsets if seed is None else partial(random_offsets, seed=seed)
        options = {"batch": batch, "threads": config.threads, "copies": copies}
        return AudioDecoder(offsets, samples=config.waveform, rate=config.sample_rate, **options)
    augment = _augmentations(config, strides, seed)
    common = {"size": config.size, "batch": batch, "threads": config.threads, "device": device, "augment": augment}
    if modality == "video":
        copies = config.crops if seed is None else copies
        crops = config.crops if seed is None else 1
        return VideoDecoder(_frame_rule(config, seed), _rectangle(config, seed, crops), copies=copies, **common)
    disparity = _disparity(config) if "depth" in strides and config.depth_as == "disparity" else None
    return ImageDecoder(strides, _rectangle(config, seed), copies=copies, disparity=disparity, **common)


def _point_decoder(config: DataConfig, seed: int | None, copies: int) -> PointDecoder:
    scale, shift = ((1.0, 1.0), 0.0) if seed is None else (config.point_scale, config.point_shift)
    changes = {"scale": scale, "stretch": config.point_stretch, "shift": shift}
    rule = PointRule(count=config.points, normalize=config.normalize_points, **changes)
    key = EVALUATION_KEY if seed is None else seed
    return PointDecoder(rule, parts=config.parts, seed=key, threads=config.threads, copies=copies)


def _rectangle(config: DataConfig, seed: int | None, crops: int = 1) -> Rectangle:
    if seed is not None:
        return partial(random_crop, seed=seed, area=config.crop_area, flip=config.flip)
    return center_crop if crops == 1 else partial(spread_squares, count=crops)


def _frame_rule(config: DataConfig, seed: int | None) -> FrameRule:
    return FrameRule(
        frames=config.frames,
        stride=config.frame_stride,
        segments=config.frame_sampling == "segments",
        views=config.views if seed is None else 1,
        seed=seed,
    )


def _disparity(config: DataConfig) -> Disparity:
    mean, deviation = NORMS[config.depth_norm]
    return Disparity(
        unit=config.depth_unit,
        baseline=config.depth_baseline,
        focal=config.depth_focal,
        rotated=config.depth_rotated,
        mean=mean,
        deviation=deviation,
    )


def _augmentations(config: DataConfig, strides: Mapping[str, int], seed: int | None) -> Augmentations:
    """What changes at random after the crop; ValueError where it would tear pictures and class maps apart."""
    steps: list[Augmentation] = []
    if seed is not None and config.randaugment:
        if torn := [modality for modality in strides if modality not in MOVABLE]:
            raise ValueError(
                f"data.randaugment = {config.randaugment} moves pictures, but not the {torn[0]} that is aligned with "
                "them: set it to 0"
            )
        strength = {"operations": config.randaugment, "magnitude": config.randaugment_magnitude}
        steps.append(RandAugment(**strength, size=config.size, seed=seed))
    if seed is not None and config.color_jitter:
        steps.append(ColorJitter(strength=config.color_jitter, seed=seed))
    return Augmentations(steps)


def check_together(modalities: Mapping[str, int]) -> None:
    """ValueError for modalities that cannot be in one sample."""
    alone = [modality for modality in modalities if modality in ALONE]
    if alone and len(modalities) > 1:
        raise ValueError(
            f"{', '.join(modalities)} cannot be read as one sample: {alone[0]} is read alone, only pictures and maps "
            "are aligned; give each its own run or data set"
        )
