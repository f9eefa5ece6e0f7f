"""The modalities that the engine knows. A new one is one call of `register`; no other line of the models changes.

A modality is an image of pixels, a map of classes, a clip of images or the spectrogram of a sound, cut into patches
that become tokens; or a cloud of points, whose neighborhoods do. It can be an input, an output, or both; one with a
`source` is an output only: a second view of the source's pixels, masked like the source.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Modality:
    """How one modality is read, tokenized and scored."""

    name: str
    """Key in the batch and in the configuration, a Python identifier."""
    kind: Literal["pixels", "classes", "clips", "sounds", "points"]
    """Pixels (B, H, W, channels), uint8 or floating; a class map (B, H / stride, W / stride) of integers; clips
    (B, T, H, W, channels) of pixels; sounds, waveforms (B, samples), of which models see spectrograms
    (B, T, F, channels); or points (B, N, channels), floating."""
    channels: int = 1
    """Channels of pixels; a class map has as many outputs for each of its pixels as there are classes."""
    stride: int = 1
    """Image pixels for each pixel of the stored map, per side."""
    loss: Literal["mse", "l1", "cross_entropy"] = "mse"
    """Reconstruction error of one pixel: cross_entropy for classes, one of the other two for pixels. Points have an
    error of their own, the Chamfer distance."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel on the scale 0 to 1, subtracted from uint8 pixels; None leaves them between 0 and 1."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel on the scale 0 to 1, dividing uint8 pixels; given together with the mean."""
    standardize: Literal["none", "robust"] = "none"
    """Robust: every sample is scaled by the mean and variance of its middle 80 % of pixels (depth of unknown scale)."""
    standardize_patches: bool = False
    """Targets only: every patch to mean 0 and variance 1 (He et al. 2022, section 4.1)."""
    source: str | None = None
    """The modality whose pixels and mask this output uses; None for a modality with data of its own."""
    faithful_interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How the release resamples the input's position table; read in faithful mode only."""

    def __post_init__(self) -> None:
        """Refuse combinations that no tokenizer or loss could serve."""
        if not self.name.isidentifier():
            raise ValueError(f"modality name {self.name!r} is no identifier; use letters, digits and underscores")
        if (self.kind == "classes") != (self.loss == "cross_entropy"):
            fix = "cross_entropy" if self.kind == "classes" else "mse or l1"
            raise ValueError(f"modality {self.name}: {self.kind} cannot be scored by {self.loss}; set loss to {fix}")
        if self.channels < 1 or self.stride < 1:
            raise ValueError(f"modality {self.name}: channels and stride must be 1 or more")
        lengths = {None if values is None else len(values) for values in (self.mean, self.std)}
        if lengths not in ({None}, {self.channels}):
            raise ValueError(
                f"modality {self.name}: give mean and std both, with {self.channels} values each, or neither"
            )

    @property
    def data(self) -> str:
        """Name of the modality whose pixels are read: the source, or the modality itself."""
        return self.source or self.name


MODALITIES: dict[str, Modality] = {}


def register(modality: Modality) -> Modality:
    """Add a modality to the registry and return it; ValueError where the name is taken or the source unknown."""
    if modality.name in MODALITIES:
        raise ValueError(f"modality {modality.name!r} is registered already; choose another name")
    if modality.source is not None:
        find_modality(modality.source)
    MODALITIES[modality.name] = modality
    return modality


def find_modality(name: str) -> Modality:
    """The registered modality of that name; ValueError, with the nearest name, where there is none."""
    if name not in MODALITIES:
        nearest = difflib.get_close_matches(name, MODALITIES, n=1, cutoff=0.0)
        raise ValueError(f"unknown modality {name!r}; did you mean {nearest[0]!r}? Known: {', '.join(MODALITIES)}")
    return MODALITIES[name]


register(Modality(name="rgb", kind="pixels", channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD))
register(Modality(name="depth", kind="pixels", channels=1, loss="l1", standardize="robust"))
register(Modality(name="semseg", kind="classes", stride=4, loss="cross_entropy", faithful_interpolation="bilinear"))
register(
    Modality(
        name="norm_rgb",
        kind="pixels",
        channels=3,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        standardize_patches=True,
        source="rgb",
    )
)
register(Modality(name="video", kind="clips", channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD))
register(
    Modality(
        name="norm_video",
        kind="clips",
        channels=3,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        standardize_patches=True,
        source="video",
    )
)
register(Modality(name="audio", kind="sounds"))
register(Modality(name="norm_audio", kind="sounds", standardize_patches=True, source="audio"))
register(Modality(name="points", kind="points", channels=3))
