"""The section `data` of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SOURCES = ("folder", "list", "shards", "random")
CHOICES = {
    "source": SOURCES,
    "frame_sampling": ("stride", "segments"),
    "depth_as": ("stored", "disparity"),
    "depth_norm": ("released", "plain"),
}
COUNTS = (
    "batch",
    "copies",
    "size",
    "frames",
    "frame_stride",
    "views",
    "crops",
    "sample_rate",
    "points",
    "threads",
    "prefetch",
)


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
    train_share: float = 1.0
    """Share of the training samples of every class that is used, at least one of each; the same ones in every run."""
    batch: int = 256
    """Samples per step, over all ranks and micro-batches."""
    copies: int = 1
    """Rows of a batch in a row that show one sample, each cut and changed in its own way, decoded once."""
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
    color_jitter: float = 0.0
    """Pictures and video: greatest random change of brightness, contrast, saturation and hue in training, 0 to 1."""
    frames: int = 16
    """Video: frames of a clip."""
    frame_sampling: Literal["stride", "segments"] = "stride"
    """Video: stride takes every `frame_stride`-th frame; segments takes one out of each of `frames` equal parts of the
    video, at random in training, from their middle in evaluation."""
    repeat_frames: bool = False
    """Video: those of fewer frames than segments show some of them again, instead of counting as broken."""
    frame_stride: int = 4
    """Video: a clip takes every n-th frame of the video."""
    views: int = 1
    """Video: clips of each video in evaluation, evenly spread over it."""
    crops: int = 1
    """Video: squares of each clip in evaluation, evenly spread along its longer side."""
    depth_as: Literal["stored", "disparity"] = "stored"
    """Depth: what the model sees, the stored value / 65536 or the standardized disparity of a stereo camera."""
    depth_unit: float = 0.0
    """Depth as disparity: meters of one stored step, 0.001 for millimeters; 0 where it is not known."""
    depth_rotated: bool = False
    """Depth as disparity: files as SUN RGB-D stores them, their 16 bits rotated left by three places."""
    depth_focal: float = 0.0
    """Depth as disparity: focal length in pixels; 0 reads it from the modality `intrinsics` of the data set."""
    depth_baseline: float = 0.075
    """Depth as disparity: meters between the two lenses."""
    depth_norm: Literal["released", "plain"] = "released"
    """Depth as disparity: mean and deviation that standardize it, those of the released weights or 0 and 1."""
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
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                value = getattr(self, name)
                raise ValueError(f"data.{name} is {value!r}: use {', '.join(choices[:-1])} or {choices[-1]}")
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}: use 1 or more")
        if self.batch % self.copies:
            raise ValueError(f"data.batch is {self.batch}: use a multiple of data.copies = {self.copies}")
        for name in ("point_shift", "parts", "depth_focal"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} is {getattr(self, name)}: use 0 or more")
        self._check_ranges()
        self._check_video()
        self._check_depth()

    def _check_ranges(self) -> None:
        """Refuses shares, strengths and factors outside their ranges."""
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
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"data.color_jitter is {self.color_jitter}: use a strength from 0 to 1")
        if not 0 < self.train_share <= 1:
            raise ValueError(f"data.train_share is {self.train_share}: use a share above 0, up to 1")
        if not 0 <= self.bad_fraction < 1:
            raise ValueError(f"data.bad_fraction is {self.bad_fraction}: use a share from 0 to below 1")

    def _check_video(self) -> None:
        """Refuses several clips of a video where one spans it."""
        if self.frame_sampling == "segments" and self.views > 1:
            raise ValueError(
                f'data.views is {self.views}: with data.frame_sampling = "segments" a clip spans the video, use 1'
            )

    def _check_depth(self) -> None:
        """Refuses a disparity that cannot be told from what is stored."""
        if self.depth_as == "disparity" and self.depth_unit <= 0:
            raise ValueError(
                f"data.depth_unit is {self.depth_unit:g}: a disparity needs the meters of one stored step, as 0.001 "
                "where depth is in millimeters"
            )
        if self.depth_baseline <= 0:
            raise ValueError(f"data.depth_baseline is {self.depth_baseline}: use the meters between the lenses")

    @property
    def waveform(self) -> int:
        """Samples of a waveform."""
        return round(self.seconds * self.sample_rate)

    @property
    def least_frames(self) -> int:
        """Frames below which a video cannot be used: one for each segment that shows a frame of its own."""
        return self.frames if self.frame_sampling == "segments" and not self.repeat_frames else 1

    def reads_intrinsics(self, modalities: Sequence[str]) -> bool:
        """Whether samples of these modalities come with the focal length of their camera."""
        return "depth" in modalities and self.depth_as == "disparity" and not self.depth_focal


MAPS = ("size", "crop_area", "flip", "randaugment", "randaugment_magnitude")
PICTURES = (*MAPS, "color_jitter")
CLIPS = ("frames", "frame_sampling", "repeat_frames", "frame_stride", "views", "crops")
CONVERSION = ("depth_unit", "depth_rotated", "depth_focal", "depth_baseline", "depth_norm")
FIELDS = {
    "depth": (*MAPS, "depth_as", *CONVERSION),
    "semseg": MAPS,
    "video": (*PICTURES, *CLIPS),
    "audio": ("seconds", "sample_rate"),
    "points": ("points", "normalize_points", "point_scale", "point_stretch", "point_shift", "parts"),
}
"""What each kind of sample reads besides the fields that all read; any other modality reads PICTURES."""
FILES_ONLY = (
    "root",
    "train_split",
    "val_split",
    "train_share",
    "crop_area",
    "flip",
    "randaugment",
    "randaugment_magnitude",
    "color_jitter",
    *CLIPS[1:],
    "depth_as",
    *CONVERSION,
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
    if config.depth_as == "stored":
        idle |= dict.fromkeys(CONVERSION, 'data.depth_as is "stored"')
    other = "frame_stride" if config.frame_sampling == "segments" else "repeat_frames"
    idle.setdefault(other, f'data.frame_sampling is "{config.frame_sampling}"')
    if config.source == "random":
        idle |= dict.fromkeys(FILES_ONLY, 'data.source = "random" reads no files')
    return idle
