"""Point-MAE: masked autoencoding of point clouds, cut into groups of neighbors (Pang et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.checks import check_least
from omnitrunk.models.decoders.append import AppendDecoder
from omnitrunk.models.initialize import POINTMAE, Rules
from omnitrunk.models.layers.blocks import QkvBias
from omnitrunk.models.masking.policies import last_tokens, random_tokens
from omnitrunk.models.objectives import ChamferError
from omnitrunk.models.tokenizers.points import AXES, CenterPositions, PointTokenizer


@dataclass(frozen=True, kw_only=True)
class PointMAEConfig(AutoencoderConfig):
    """Sizes and choices of a Point-MAE; the defaults are those of the published model.

    Faithful: centers are sampled as by pointnet2_ops, which leaves points near the origin out.
    """

    system: Literal["pointmae"] = "pointmae"
    """Name of the system, by which a recipe chooses it."""
    points: int = 1024
    """Points of a cloud."""
    groups: int = 64
    """Groups of neighbors, the tokens; they may overlap."""
    group_size: int = 32
    """Points of a group."""
    mask: Literal["random", "block"] = "random"
    """Masked are random groups, or those nearest to one, around a random point."""
    chamfer: Literal["l2", "l1"] = "l2"
    """Loss: squared distances, or distances."""
    width: int = 384
    """Width D of the trunk."""
    heads: int = 6
    """Attention heads of the trunk."""
    decoder_width: int = 384
    """Width of the decoder, the same as that of the trunk."""
    decoder_depth: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 6
    """Attention heads of the decoder."""
    mask_ratio: float = 0.6
    """Share of the groups that is masked."""
    drop_path: float = 0.1
    """Drop probability of the trunk's last branches; it rises linearly from 0 over its depth."""
    decoder_drop_path: float = 0.1
    """The same for the decoder."""

    qkv_bias: ClassVar[QkvBias] = "none"
    norm_epsilon: ClassVar[float] = 1e-5
    initial_values: ClassVar[Rules] = POINTMAE

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that is tokenized."""
        return ("points",)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The modality that is reconstructed."""
        return ("points",)

    @property
    def total_tokens(self) -> int:
        """Groups of a cloud."""
        return self.groups

    @property
    def keep(self) -> int:
        """Visible groups V of a cloud."""
        return self.groups - int(self.mask_ratio * self.groups)

    def check_sizes(self) -> None:
        """Raise ValueError where cloud, groups and widths do not fit together."""
        check_least(self, {"groups": 2, "group_size": 1, "points": max(self.groups, self.group_size)})
        if self.decoder_width != self.width:
            raise ValueError(
                f"decoder_width = {self.decoder_width} differs from width = {self.width}, and nothing is between "
                f"trunk and decoder; set it to {self.width}"
            )

    def visible_tokens(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """Visible groups (B, V), ascending; for blocks, groups are numbered by the distance from the block's center."""
        if self.mask == "block":
            return last_tokens(self.groups, self.keep, positions=positions)
        return random_tokens(self.groups, self.keep, seed=seed, positions=positions)

    def build_tokenizer(self) -> PointTokenizer:
        """Groups of points, each through a small PointNet."""
        sizes = {"points": self.points, "groups": self.groups, "group_size": self.group_size}
        return PointTokenizer(self.width, **sizes, pointnet2=self.faithful, nearest_first=self.mask == "block")

    def build_block_positions(self) -> CenterPositions:
        """Positions of the centers, before every block."""
        return CenterPositions(self.width)

    def build_decoder(self) -> AppendDecoder:
        """Visible groups, then mask tokens; positions of its own, before every block."""
        positions = CenterPositions(self.decoder_width)
        return AppendDecoder(self, positions, self.group_size * AXES, embed=False, position_every_block=True)

    def build_objective(self) -> ChamferError:
        """Chamfer distance of masked groups."""
        return ChamferError(norm=self.chamfer)
