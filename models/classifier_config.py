"""The configuration of a classifier: the encoder of a masked autoencoder, pooled, with a linear head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from omnitrunk.models.audiomae import AudioMAEConfig
from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.checks import check_least, check_mixing, check_rate
from omnitrunk.models.field_types import check_values
from omnitrunk.models.initialize import Rules, normal
from omnitrunk.models.mae import MAEConfig
from omnitrunk.models.parameter_groups import is_matrix
from omnitrunk.models.pointmae import PointMAEConfig
from omnitrunk.models.videomae import VideoMAEConfig

ENCODERS: dict[str, type[AutoencoderConfig]] = {
    "mae": MAEConfig,
    "videomae": VideoMAEConfig,
    "audiomae": AudioMAEConfig,
    "pointmae": PointMAEConfig,
}
"""The systems whose encoders can be fine-tuned."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What is put on an encoder, and how gently it is trained."""

    system: Literal["classifier"] = "classifier"
    """Name of the system, by which a recipe chooses it."""
    faithful: bool = False
    """Passed on to the encoder: reproduce the released code exactly (docs/faithful.md)."""
    encoder: dict[str, Any] = field(default_factory=lambda: {"system": "mae"})
    """The [model] section of the pre-training: its system and sizes. What is about masks and decoder is not used."""
    classes: int = 1000
    """Classes that the head tells apart."""
    drop_path: float = 0.0
    """Drop probability of the last block's branches; it rises linearly from 0 over the depth."""
    label_smoothing: float = 0.0
    """Share of the probability that the target spreads over all classes."""
    mixup: float = 0.0
    """Pictures, clips and sounds: a of Beta(a, a), the shares in which two training samples are mixed; 0 mixes none."""
    cutmix: float = 0.0
    """Pictures and clips: the same for samples that get a box of another; with mixup too, half of them do."""
    mixed: float = 1.0
    """Share of the training samples that mixup and cutmix change."""
    erase: float = 0.0
    """Pictures and clips: probability that a rectangle of a training sample is filled with noise."""
    mask_frames: int = 0
    """Sounds: a span of fewer frames of each training spectrogram is blanked (SpecAugment)."""
    mask_mels: int = 0
    """Sounds: the same for bands."""
    drop_times: float = 0.0
    """Sounds: share of the times of patches that a training sample lacks."""
    drop_bands: float = 0.0
    """Sounds: the same for bands of patches."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each block to the one before it; below 1, early layers move less."""
    train: Literal["everything", "head"] = "everything"
    """Head: all else is frozen, but for the scales of pathways (M2PT's "fix"; without pathways, a linear probe)."""

    train_positions: bool = False
    """Train the position table, which is fixed in pre-training, and a position of the class token."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built, each with one line that says what to change."""
        if (found := self.encoder.get("system")) not in tuple(ENCODERS):
            raise ValueError(f"encoder.system = {found!r} is none of {', '.join(ENCODERS)}; choose one of them")
        check_values("encoder", ENCODERS[found], self.encoder)
        check_least(self, {"classes": 1})
        for name in ("drop_path", "label_smoothing", "erase", "drop_times", "drop_bands"):
            check_rate(name, getattr(self, name))
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay = {self.layer_decay} must lie in 0..1, 0 excluded; 1 switches it off")
        self._check_mixing()
        self._check_augmentation()

    def _check_mixing(self) -> None:
        check_mixing(self)
        if self.mixup and self.inputs == ("points",):
            raise ValueError(f"mixup = {self.mixup}: point clouds are not mixed; set it to 0")

    def _check_augmentation(self) -> None:
        """What a modality does not have cannot be changed in it."""
        of_sounds = ("mask_frames", "mask_mels", "drop_times", "drop_bands")
        lacking = (() if self.image_shape else ("cutmix", "erase")) + (() if self.sound_shape else of_sounds)
        for name in lacking:
            if getattr(self, name):
                raise ValueError(f"{name} = {getattr(self, name)} has no meaning for {self.inputs[0]}; set it to 0")
        if self.sound_shape:
            self._check_sounds(*self.sound_shape)

    def _check_sounds(self, frames: int, mels: int) -> None:
        check_least(self, {"mask_frames": 0, "mask_mels": 0})
        if self.mask_frames > frames or self.mask_mels > mels:
            raise ValueError(
                f"mask_frames = {self.mask_frames} and mask_mels = {self.mask_mels} are more than a spectrogram of "
                f"{frames} frames and {mels} bands has; lower them"
            )
        if not self.keep:
            raise ValueError(
                f"drop_times = {self.drop_times} and drop_bands = {self.drop_bands} leave none of "
                f"{self.encoder_config.grid} patches; lower them"
            )

    @property
    def encoder_config(self) -> AutoencoderConfig:
        """The configuration of the pre-training."""
        values = {name: _frozen(value) for name, value in self.encoder.items()}
        return ENCODERS[self.encoder["system"]](**{"faithful": self.faithful} | values)

    @property
    def initial_values(self) -> Rules:
        """How the parameters are drawn, where no checkpoint gives them; see models.initialize."""
        return ((r"^head\.weight$", _faint), *self.encoder_config.initial_values)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that is classified."""
        return self.encoder_config.inputs

    @property
    def reads(self) -> tuple[str, ...]:
        """Modalities that a batch must hold."""
        return self.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """The name of the loss."""
        return ("class",)

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Height and width of the pictures in pixels; None where a sample is none."""
        return self.encoder_config.image_shape

    @property
    def sound_shape(self) -> tuple[int, int] | None:
        """Frames and bands of spectrograms; None where a sample is no sound."""
        encoder = self.encoder_config
        return (encoder.frames, encoder.mels) if isinstance(encoder, AudioMAEConfig) else None

    @property
    def mixes(self) -> bool:
        """Whether training mixes pairs of samples."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def kept_lines(self) -> tuple[int, int]:
        """Times and bands of patches of a sound that training sees, rounded down."""
        times, bands = self.encoder_config.grid
        return int(times * (1 - self.drop_times)), int(bands * (1 - self.drop_bands))

    @property
    def keep(self) -> int:
        """Tokens of a sample that training sees: all, but for dropped patches of sounds."""
        return prod(self.kept_lines) if self.drops_tokens else self.total_tokens

    @property
    def drops_tokens(self) -> bool:
        """Whether training leaves out patches."""
        return self.drop_times > 0 or self.drop_bands > 0

    @property
    def total_tokens(self) -> int:
        """Tokens of a sample."""
        return self.encoder_config.total_tokens

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to a parameter."""
        return is_matrix(name)

    def lr_scale(self, name: str) -> float:
        """Factor on a parameter's learning rate by its depth: blocks count from 1, what comes before them is 0."""
        depth = self.encoder_config.depth
        first, _, rest = name.partition(".")
        layer = depth + 1 if first in ("norm", "head") else 0
        if first == "blocks":
            layer = 1 + int(rest.partition(".")[0])
        return self.layer_decay ** (depth + 1 - layer)


def _faint(name: str, parameters: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Normal with standard deviation 0.00002, as MAE, VideoMAE and AudioMAE draw a head that is fine-tuned."""
    return 1e-3 * normal(name, parameters, generator)


def _frozen(value: Any) -> Any:
    """Lists, as files have them, as tuples."""
    return tuple(value) if isinstance(value, list) else dict(value) if isinstance(value, Mapping) else value
