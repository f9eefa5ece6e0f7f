"""The section `data` of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SOURCES = ("folder", "list", "shards", "random")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from and how they are cut."""

    source: Literal["folder", "list", "shards", "random"] = "folder"
    """folder reads files below `root`; list reads the files that a list names; shards reads tar archives; random makes
    noise on the device: the speed of a run whose data is free."""
    root: str = ""
    """Folder of the data set: it holds <split>/<modality>/<class>/<stem>.<suffix>, <split>.csv or <split>/*.tar."""
    train_split: str = "train"
    """Folder or list below `root` with the samples to train on."""
    val_split: str = "val"
    """Folder or list below `root` with the samples to evaluate on."""
    batch: int = 256
    """Samples per step, over all ranks and micro-batches."""
    size: int = 224
    """Pictures and video: height and width of what the model sees, in pixels."""
    crop_area: tuple[float, float] = (0.2, 1.0)
    """Pictures and video: least and greatest share of a picture that a random crop covers."""
    flip: bool = True
    """Pictures and video: mirror every other training sample, at random."""
    randaugment: int = 0
    """Pictures and video: operations of RandAugment in a row on each training sample; 0 for none."""
    randaugment_magnitude: float = 9.0
    """Pictures and video: their strength, from 0 to 10."""
    frames: int = 16
    """Video: frames of a clip."""
    frame_stride: int = 4
    """Video: a clip takes every n-th frame of the video."""
    seconds: float = 10.0
    """Audio: length of a waveform; longer recordings are cut, shorter ones padded with zeros."""
    sample_rate: int = 16_000
    """Audio: samples per second of a waveform; recordings at other rates are resampled."""
    points: int = 1024
    """Point clouds: points of a cloud."""
    normalize_points: bool = True
    """Point clouds: move the mean to the origin and the farthest point to distance 1."""
    point_scale: tuple[float, float] = (2 / 3, 3 / 2)
    """Point clouds: least and greatest random factor in training."""
    point_stretch: bool = True
    """Point clouds: draw that factor anew for each axis; false scales all three alike."""
    point_shift: float = 0.2
    """Point clouds: greatest random shift along each axis in training, either way."""
    parts: int = 0
    """Point clouds: kinds of parts, to one of which every point of every file belongs; 0 reads no labels of points."""
    bad_fraction: float = 0.01
    """Share of unreadable samples above which the run stops; up to it they are replaced, counted and logged."""
    threads: int = 4
    """Threads of each rank that read files, and as many that decode: the cores a rank may use."""
    prefetch: int = 2
    """Batches prepared ahead of the step that needs them."""

    def __post_init__(self) -> None:
        """Refuses values that no run could use."""
        if self.source not in SOURCES:
            raise ValueError(f"data.source is {self.source!r}: use {', '.join(SOURCES[:-1])} or {SOURCES[-1]}")
        for name in ("batch", "size", "frames", "frame_stride", "sample_rate", "points", "threads", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}: use 1 or more")
        if self.waveform < 1:
            raise ValueError(f"data.seconds is {self.seconds}: use at least the time of one sample")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"data.crop_area is {self.crop_area}: use 0 < least <= greatest <= 1")
        if self.randaugment < 0 or not 0 <= self.randaugment_magnitude <= 10:
            raise ValueError(
                f"data.randaugment is {self.randaugment} of magnitude {self.randaugment_magnitude}: use 0 or more "
                "operations of a magnitude from 0 to 10"
            )
        if not 0 < self.point_scale[0] <= self.point_scale[1]:
            raise ValueError(f"data.point_scale is {self.point_scale}: use 0 < least <= greatest")
        for name in ("point_shift", "parts"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} is {getattr(self, name)}: use 0 or more")
        if not 0 <= self.bad_fraction < 1:
            raise ValueError(f"data.bad_fraction is {self.bad_fraction}: use a share from 0 to below 1")

    @property
    def waveform(self) -> int:
        """Samples of a waveform."""
        return round(self.seconds * self.sample_rate)


PICTURES = ("size", "crop_area", "flip", "randaugment", "randaugment_magnitude")
FIELDS = {
    "video": (*PICTURES, "frames", "frame_stride"),
    "audio": ("seconds", "sample_rate"),
    "points": ("points", "normalize_points", "point_scale", "point_stretch", "point_shift", "parts"),
}
"""What each kind of sample reads besides the fields that all read; any other modality reads PICTURES."""
FILES_ONLY = (
    "root",
    "train_split",
    "val_split",
    "crop_area",
    "flip",
    "randaugment",
    "randaugment_magnitude",
    "frame_stride",
    "normalize_points",
    "point_scale",
    "point_stretch",
    "point_shift",
    "bad_fraction",
    "threads",
)
"""What random data does not read."""


def idle_fields(config: DataConfig, modalities: Sequence[str]) -> dict[str, str]:
    """Every field of the section that changes nothing with these modalities and this source, with the reason."""
    read = {name for modality in modalities for name in FIELDS.get(modality, PICTURES)}
    idle = {
        name: f"nothing of {', '.join(modalities)} depends on it"
        for names in FIELDS.values()
        for name in names
        if name not in read
    }
    if not config.randaugment:
        idle |= {"randaugment_magnitude": "data.randaugment is 0"}
    if config.source == "random":
        idle |= dict.fromkeys(FILES_ONLY, 'data.source = "random" reads no files')
    return idle
