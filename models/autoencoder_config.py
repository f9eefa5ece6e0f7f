"""What the configurations of all masked autoencoders of one modality share; a system is a subclass that adds its parts.

A new system is one file: its sizes as fields, and the few methods below that build its parts. B batch, N tokens, V
visible, M masked, D and d widths of trunk and decoder, P values predicted for a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from omnitrunk.models.checks import check_heads, check_least, check_rate
from omnitrunk.models.initialize import MAE, Rules
from omnitrunk.models.layers.blocks import QkvBias
from omnitrunk.models.parameter_groups import is_matrix


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(ABC):
    """Sizes of trunk and decoder, and the parts that a system chooses."""

    faithful: bool = False
    """Reproduce the released code exactly, oddities included (docs/faithful.md); default is the corrected behavior."""
    width: int = 768
    """Width D of the trunk."""
    depth: int = 12
    """Blocks of the trunk."""
    heads: int = 12
    """Attention heads of the trunk."""
    mlp_ratio: float = 4.0
    """Hidden width of every MLP, trunk and decoder, as a multiple of its width."""
    decoder_width: int = 512
    """Width d of the decoder."""
    decoder_depth: int = 8
    """Blocks of the decoder."""
    decoder_heads: int = 16
    """Attention heads of the decoder."""
    mask_ratio: float = 0.75
    """Share of the tokens that is masked."""
    drop_path: float = 0.0
    """Drop probability of the trunk's last branches; it rises linearly from 0 over its depth."""
    decoder_drop_path: float = 0.0
    """The same for the decoder."""

    class_token: ClassVar[bool] = False
    """Whether a learned token stands before the visible ones."""
    qkv_bias: ClassVar[QkvBias] = "qkv"
    """The biases of every attention."""
    norm_epsilon: ClassVar[float] = 1e-6
    """Epsilon of every LayerNorm."""
    initial_values: ClassVar[Rules] = MAE
    """How the parameters are drawn; see models.initialize."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built, each with one line that says what to change."""
        check_heads("width", self.width, "heads", self.heads)
        check_heads("decoder_width", self.decoder_width, "decoder_heads", self.decoder_heads)
        check_least(self, {"depth": 0, "decoder_depth": 0, "mlp_ratio": 1 / self.decoder_width})
        for field in ("mask_ratio", "drop_path", "decoder_drop_path"):
            check_rate(field, getattr(self, field))
        self.check_sizes()
        if not 1 <= self.keep < self.total_tokens:
            raise ValueError(
                f"mask_ratio = {self.mask_ratio} leaves {self.keep} of {self.total_tokens} tokens visible; "
                "choose one that leaves and masks at least one"
            )

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """The modality that is tokenized."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """The modality that is reconstructed; it names the loss."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Modalities that a batch must hold."""
        return self.inputs

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Height and width of the pictures in pixels; None where a sample is none."""
        return None

    @property
    @abstractmethod
    def total_tokens(self) -> int:
        """Tokens N of a sample."""

    @property
    @abstractmethod
    def keep(self) -> int:
        """Visible tokens V of a sample."""

    @abstractmethod
    def check_sizes(self) -> None:
        """Raise ValueError where the system's own sizes do not fit together."""

    @abstractmethod
    def visible_tokens(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """The mask policy: visible tokens int64 (B, V) of the samples at `positions` int64 (B,)."""

    @abstractmethod
    def build_tokenizer(self) -> nn.Module:
        """A module with prepare(tensors) -> sample, (sample, index (B, K)) -> tokens (B, K, D), and flops(rows).

        What `prepare` returns, a dict of tensors, is what all other parts read.
        """

    @abstractmethod
    def build_decoder(self) -> nn.Module:
        """A module (encoded, sample, plan) -> (B * M, P), with `everywhere` and `flops` as in RestoreDecoder."""

    @abstractmethod
    def build_objective(self) -> Any:
        """A callable (prediction (B * M, P), sample, masked (B, M)) -> the loss, a scalar."""

    def build_block_positions(self) -> nn.Module | None:
        """A module (sample, index (B, K)) -> (B, K, D), added before every block; None if the tokenizer adds it."""
        return None

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to a parameter."""
        return is_matrix(name)

    @property
    def trunk(self) -> dict[str, Any]:
        """Arguments of the trunk."""
        return self._blocks(self.width, self.depth, self.heads)

    @property
    def decoder_trunk(self) -> dict[str, Any]:
        """Arguments of the decoder's blocks."""
        return self._blocks(self.decoder_width, self.decoder_depth, self.decoder_heads)

    def _blocks(self, width: int, depth: int, heads: int) -> dict[str, Any]:
        sizes = {"width": width, "depth": depth, "heads": heads, "mlp_ratio": self.mlp_ratio}
        return {**sizes, "bias": self.qkv_bias, "eps": self.norm_epsilon}
