"""What both forms of a fine-tuned Point-MAE share: configuration, plan, and the encoder that they start from.

Pang et al. 2022 (Point-MAE), section 4.2. B batch, G groups, D width. Every parameter that pre-training does not know
is in `head`, so that checkpoints of the pre-training fit by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from omnitrunk.models.checks import check_rate
from omnitrunk.models.encoder import Encoder
from omnitrunk.models.field_types import check_values
from omnitrunk.models.initialize import NORMS, POINTMAE, Rules, by_inputs, normal
from omnitrunk.models.layers.blocks import LayerNorm
from omnitrunk.models.layers.drop_path import sample_drop_scale
from omnitrunk.models.layers.dropout import dropout_keys
from omnitrunk.models.masking.token_plan import TokenPlan, make_token_plan
from omnitrunk.models.parameter_groups import is_matrix, parameter_groups
from omnitrunk.models.pointmae import PointMAEConfig


@dataclass(frozen=True, kw_only=True)
class PointTuningConfig:
    """What is put on the encoder, and what is dropped in training.

    The batch norms of tokenizer and head take their statistics over a micro-batch, on all processes together: with
    optimizer.accumulate above 1 they see fewer clouds at a time than data.batch has, and the result differs.
    """

    faithful: bool = False
    """Passed on to the encoder; the position of the class token decays as well (docs/faithful.md)."""
    encoder: dict[str, Any] = field(default_factory=lambda: {"system": "pointmae"})
    """The [model] section of the pre-training: its system and sizes. What is about masks and decoder is not used."""
    drop_path: float = 0.1
    """Drop probability of the last block's branches; it rises linearly from 0 over the depth."""
    dropout: float = 0.5
    """Share of the head's hidden values that is dropped in training."""

    initial_values: ClassVar[Rules] = (
        (r"^head\.class_(token|position)$", normal),
        *NORMS,
        (r"^head\.", by_inputs),
        *POINTMAE,
    )
    """How the parameters are drawn; those of the head are left at PyTorch's default."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built, each with one line that says what to change."""
        if (found := self.encoder.get("system")) != PointMAEConfig.system:
            raise ValueError(f"encoder.system = {found!r} is no encoder of points; set it to {PointMAEConfig.system!r}")
        check_values("encoder", PointMAEConfig, self.encoder)
        for name in ("drop_path", "dropout"):
            check_rate(name, getattr(self, name))
        _ = self.encoder_config
        self.check_sizes()

    def check_sizes(self) -> None:
        """Raise ValueError where the head's own sizes do not fit together or to the encoder."""

    @property
    def encoder_config(self) -> PointMAEConfig:
        """The configuration of the pre-training."""
        return PointMAEConfig(**{"faithful": self.faithful} | self.encoder)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that is tokenized."""
        return ("points",)

    @property
    def reads(self) -> tuple[str, ...]:
        """Modalities that a batch must hold."""
        return self.inputs

    @property
    def image_shape(self) -> None:
        """A cloud is no picture."""
        return

    @property
    def keep(self) -> int:
        """Visible groups of a cloud: all."""
        return self.total_tokens

    @property
    def total_tokens(self) -> int:
        """Groups of a cloud."""
        return self.encoder_config.groups

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to a parameter."""
        return is_matrix(name) or (self.faithful and name == "head.class_position")


@dataclass(frozen=True, kw_only=True)
class PointPlan(TokenPlan):
    """All groups of every cloud, and what is dropped."""

    dropout_keys: Tensor | None = None
    """int64 (places, B): one key for each dropout of the head, or None where nothing is dropped."""


class TunedEncoder(Encoder):
    """Encoder and final norm of a Point-MAE; a subclass adds `head` and calls `initialize`."""

    dropouts: ClassVar[int]
    """Places of the head where values are dropped."""

    def __init__(self, config: PointTuningConfig) -> None:
        encoder = config.encoder_config
        super().__init__(encoder)
        self.config = config
        self.norm = LayerNorm(encoder.width, encoder.norm_epsilon)

    def plan(self, seed: int, positions: np.ndarray) -> PointPlan:
        """All groups of the clouds at `positions` int64 (B,), and what is dropped, keyed by (seed, position)."""
        config, keyed = self.config, {"seed": seed, "positions": np.asarray(positions, dtype=np.int64)}
        every = np.tile(np.arange(config.total_tokens), (len(keyed["positions"]), 1))
        drop_scale = sample_drop_scale(config.drop_path, len(self.blocks), **keyed)
        tokens = make_token_plan(every, config.total_tokens, drop_scale=drop_scale)
        return PointPlan(**vars(tokens), dropout_keys=dropout_keys(config.dropout, self.dropouts, **keyed))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Groups for the optimizer; see models.parameter_groups."""
        return parameter_groups(self, weight_decay)

    def encoder_flops(self, clouds: int, length: int) -> int:
        """Matrix arithmetic of tokenizer and trunk on sequences of `length`, forward."""
        groups = clouds * self.config.total_tokens
        return self.tokenizer.flops(clouds, groups) + self.blocks.flops(clouds, length, clouds * length)
