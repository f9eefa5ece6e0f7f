"""VideoMAE: masked autoencoding of clips, cut into cubes and masked in tubes (Tong et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import numpy as np

from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.checks import check_divides, check_least, pair
from omnitrunk.models.decoders.append import AppendDecoder
from omnitrunk.models.initialize import VIDEOMAE, Rules
from omnitrunk.models.layers.blocks import QkvBias
from omnitrunk.models.layers.positions import FixedPositions, interleaved_table
from omnitrunk.models.masking.policies import random_tokens, tube_tokens
from omnitrunk.models.objectives import CubeError
from omnitrunk.models.tokenizers.patches import PatchTokenizer

CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class VideoMAEConfig(AutoencoderConfig):
    """Sizes and choices of a VideoMAE; the defaults are those of the published base model.

    The release has no oddity in pre-training that would have to be corrected: faithful or not, the model is the same.
    """

    system: Literal["videomae"] = "videomae"
    """Name of the system, by which a recipe chooses it."""
    frames: int = 16
    """Frames of a clip."""
    image_size: int | tuple[int, int] = 224
    """Pixels of a frame, one number for a square or (height, width)."""
    tubelet: int = 2
    """Frames of a cube."""
    patch_size: int = 16
    """Pixels for each side of a cube."""
    standardize_targets: bool = True
    """Bring every channel of every target cube to mean 0 and variance 1."""
    decoder_width: int = 384
    """Width d of the decoder."""
    decoder_depth: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 6
    """Attention heads of the decoder."""
    mask_ratio: float = 0.9
    """Share of the cubes of a time slice that is masked; all slices of a clip share the pattern."""

    qkv_bias: ClassVar[QkvBias] = "qv"
    initial_values: ClassVar[Rules] = VIDEOMAE

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that is tokenized."""
        return ("video",)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The modality that is reconstructed."""
        return ("norm_video",) if self.standardize_targets else ("video",)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        return pair(self.image_size)

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """Frames, height and width of a clip."""
        return (self.frames, *self.image_shape)

    @property
    def cube(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a cube."""
        return self.tubelet, self.patch_size, self.patch_size

    @property
    def grid(self) -> tuple[int, int, int]:
        """Cubes along time, down and across."""
        slices, rows, columns = (side // unit for side, unit in zip(self.clip_shape, self.cube, strict=True))
        return slices, rows, columns

    @property
    def total_tokens(self) -> int:
        """Cubes N of a clip."""
        return prod(self.grid)

    @property
    def keep(self) -> int:
        """Visible cubes V of a clip; the number of masked ones in a slice is rounded down."""
        slices, cells = self.grid[0], prod(self.grid[1:])
        return slices * (cells - int(self.mask_ratio * cells))

    def check_sizes(self) -> None:
        """Raise ValueError where clip and cube do not fit together."""
        check_least(self, {"tubelet": 1, "patch_size": 1})
        check_divides("clip of frames and image_size", self.clip_shape, self.cube, "cubes")

    def visible_tokens(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """Visible cubes (B, V): a random pattern for each clip, the same in all of its slices; ascending."""
        slices, cells = self.grid[0], prod(self.grid[1:])
        pattern = random_tokens(cells, self.keep // slices, seed=seed, positions=positions)
        return tube_tokens(pattern, slices, cells)

    def build_tokenizer(self) -> PatchTokenizer:
        """Cubes, with the positions of VideoMAE."""
        return PatchTokenizer("video", self.clip_shape, self.cube, interleaved_table(self.total_tokens, self.width))

    def build_decoder(self) -> AppendDecoder:
        """Visible cubes, then mask tokens."""
        positions = FixedPositions(interleaved_table(self.total_tokens, self.decoder_width))
        return AppendDecoder(self, positions, prod(self.cube) * CHANNELS)

    def build_objective(self) -> CubeError:
        """Squared error of masked cubes."""
        return CubeError(output=self.outputs[0], tokens=self.total_tokens, cube=self.cube)
