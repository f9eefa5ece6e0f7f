"""The check of a file of any modality, on its way from the disk to the decoder."""

from __future__ import annotations

import torch

from omnitrunk.engine.data.formats.point_files import read_points
from omnitrunk.engine.data.sample import Facts, Picture
from omnitrunk.engine.data.verify.audio import verify_audio
from omnitrunk.engine.data.verify.images import palette_to_grey, verify
from omnitrunk.engine.data.verify.intrinsics import verify_intrinsics
from omnitrunk.engine.data.verify.video import verify_video


def inspect_file(
    modality: str, data: bytes, device: torch.device | str | None = None, *, least_frames: int = 1
) -> tuple[bytes, Facts]:
    """The bytes to decode and what was found out about them, or BadFile.

    `device` is where they will be decoded; None, as in a check ahead of the run, does not ask whether that works.
    Videos of fewer than `least_frames` frames are bad.
    """
    if modality == "video":
        return data, verify_video(data, device, least_frames=least_frames)
    if modality == "audio":
        return data, verify_audio(data)
    if modality == "intrinsics":
        return data, verify_intrinsics(data)
    if modality == "points":
        return data, read_points(data)
    size = Picture(*verify(data, modality))
    return palette_to_grey(data) if modality == "semseg" else data, size
