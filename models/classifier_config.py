"""The configuration of a classifier: the encoder of a masked autoencoder, pooled, with a linear head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from omnitrunk.models.audiomae import AudioMAEConfig
from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.checks import check_least, check_rate
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
    layer_decay: float = 1.0
    """Factor on the learning rate from each block to the one before it; below 1, early layers move less."""
    train: Literal["everything", "head"] = "everything"
    """Head: all else is frozen, but for the scales of pathways (M2PT's "fix"; without pathways, a linear probe)."""

    train_positions: bool = False
    """Train the position table, which is fixed in pre-training, and a position of the class token."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built, each with one line that says what to change."""
        if self.encoder.get("system") not in ENCODERS:
            found = self.encoder.get("system")
            raise ValueError(f"encoder.system = {found!r} is none of {', '.join(ENCODERS)}; choose one of them")
        known = {item.name for item in fields(ENCODERS[self.encoder["system"]])}
        if unknown := [name for name in self.encoder if name not in known]:
            raise ValueError(f"encoder.{unknown[0]} is no field of {self.encoder['system']}; take it out")
        check_least(self, {"classes": 1})
        for name in ("drop_path", "label_smoothing"):
            check_rate(name, getattr(self, name))
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay = {self.layer_decay} must lie in 0..1, 0 excluded; 1 switches it off")
        _ = self.encoder_config

    @property
    def encoder_config(self) -> AutoencoderConfig:
        """The configuration of the pre-training."""
        values = {name: _frozen(value) for name, value in self.encoder.items()}
        return ENCODERS[self.encoder["system"]](**{"faithful": self.faithful} | values)

    @property
    def initial_values(self) -> Rules:
        """How the parameters are drawn, where no checkpoint gives them; see models.initialize."""
        return ((r"^head\.weight$", normal), *self.encoder_config.initial_values)

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
    def keep(self) -> int:
        """Visible tokens of a sample: all."""
        return self.encoder_config.total_tokens

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


def _frozen(value: Any) -> Any:
    """Lists, as files have them, as tuples."""
    return tuple(value) if isinstance(value, list) else dict(value) if isinstance(value, Mapping) else value
