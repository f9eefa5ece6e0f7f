"""OmniMAE: masked autoencoding of pictures and clips by one plain transformer (Girdhar et al. 2023).

B batch, M masked patches of a sample, P values of a cube. A batch holds "rgb" or "video"; what the configuration calls
its modality is only what plans are drawn for, and the weights are the same for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from omnitrunk.kernels.patches import gather_patches
from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.checks import check_divides, check_least, pair
from omnitrunk.models.decoders.project import ProjectDecoder
from omnitrunk.models.initialize import VIDEOMAE, Rules
from omnitrunk.models.layers.positions import interleaved_table
from omnitrunk.models.masking.policies import random_tokens
from omnitrunk.models.masking.token_plan import flat_rows
from omnitrunk.models.modality import find_modality
from omnitrunk.models.objectives import STANDARDIZE_EPSILON, CubeError
from omnitrunk.models.tokenizers.repeated import RepeatedTokenizer

CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class OmniMAEConfig(AutoencoderConfig):
    """Sizes and choices of an OmniMAE; the defaults are those of the published base model, on clips.

    The release has no oddity in pre-training that would have to be corrected: faithful or not, the model is the same.
    """

    system: Literal["omnimae"] = "omnimae"
    """Name of the system, by which a recipe chooses it."""
    modality: Literal["video", "rgb"] = "video"
    """What is trained on: clips or pictures."""
    frames: int = 16
    """Frames of a clip; a model of pictures has the position tables of clips, too."""
    image_size: int | tuple[int, int] = 224
    """Pixels of pictures and frames, one number for a square or (height, width)."""
    tubelet: int = 2
    """Frames of a cube; a picture is repeated so many times."""
    patch_size: int = 16
    """Pixels for each side of a cube."""
    decoder_width: int = 384
    """Width d of the decoder."""
    decoder_depth: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 16
    """Attention heads of the decoder."""
    decoder_qkv_bias: bool = True
    """Biases of queries, keys and values in the decoder; the released weights have none."""
    standardize_channels: bool = True
    """Bring every channel of a target cube to mean 0 and variance 1 by itself; else all of its values together."""
    mask_ratio: float = 0.95
    """Share of the cubes that is masked, 0.9 for pictures in the paper; their number is rounded down."""

    initial_values: ClassVar[Rules] = VIDEOMAE

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that is tokenized."""
        return (self.modality,)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The modality that is reconstructed, standardized."""
        return (f"norm_{self.modality}",)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of pictures and frames in pixels."""
        return pair(self.image_size)

    @property
    def cube(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a cube."""
        return self.tubelet, self.patch_size, self.patch_size

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """Frames, height and width of a clip."""
        return (self.frames, *self.image_shape)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Cubes of a clip along time, down and across."""
        return tuple(extent // side for extent, side in zip(self.clip_shape, self.cube, strict=True))

    @property
    def drawn(self) -> bool:
        """Whether reconstructions can be drawn: those of a picture are of several frames, and are not."""
        return self.modality == "video"

    @property
    def clip_tokens(self) -> int:
        """Cubes of a clip."""
        return prod(self.grid)

    @property
    def total_tokens(self) -> int:
        """Cubes N of a sample."""
        return prod(self.grid if self.modality == "video" else self.grid[1:])

    @property
    def keep(self) -> int:
        """Visible cubes V of a sample."""
        return self.total_tokens - int(self.total_tokens * self.mask_ratio)

    @property
    def decoder_trunk(self) -> dict[str, Any]:
        """Arguments of the decoder's blocks."""
        return {**super().decoder_trunk, "bias": "qkv" if self.decoder_qkv_bias else "none"}

    def check_sizes(self) -> None:
        """Raise ValueError where clip and cube do not fit together."""
        check_least(self, {"patch_size": 1, "tubelet": 1})
        check_divides("image_size", self.image_shape, self.cube[1:])
        if self.frames < 1 or self.frames % self.tubelet:
            raise ValueError(f"frames = {self.frames} must be a multiple of tubelet = {self.tubelet}, 1 or more")

    def visible_tokens(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """Visible cubes (B, V): a random subset of each sample."""
        return random_tokens(self.total_tokens, self.keep, seed=seed, positions=positions)

    def build_tokenizer(self) -> RepeatedTokenizer:
        """Cubes, with positions over the cube's number."""
        return RepeatedTokenizer(
            self.modality, self.clip_shape, self.cube, interleaved_table(self.clip_tokens, self.width)
        )

    def build_decoder(self) -> ProjectDecoder:
        """All places, mask tokens where nothing is visible."""
        return ProjectDecoder(self, interleaved_table(self.clip_tokens, self.width), prod(self.cube) * CHANNELS)

    def build_objective(self) -> RepeatedError:
        """Squared error of masked cubes."""
        return RepeatedError(
            output=self.outputs[0], tokens=self.total_tokens, cube=self.cube, channels=self.standardize_channels
        )


@dataclass(frozen=True, kw_only=True)
class RepeatedError(CubeError):
    """Mean squared error over all masked cubes, those of a picture repeated, as the tokenizer sees them.

    Every cube is standardized: (x - mean) / sqrt(variance + 1e-6), the variance with denominator count - 1, of pixels
    from 0 to 1.
    """

    channels: bool
    """Each channel of a cube by itself, or all together."""

    def target(self, sample: Mapping[str, Tensor], masked: Tensor) -> Tensor:
        """The targets (B * M, P) of cubes (B, M), values in (time, row, column, channel) order."""
        values = self.pixels(sample, masked)
        variance, mean = torch.var_mean(values, dim=1 if self.channels else (1, 2), keepdim=True)
        return ((values - mean) * (variance + STANDARDIZE_EPSILON).rsqrt()).flatten(1)

    def pixels(self, sample: Mapping[str, Tensor], masked: Tensor) -> Tensor:
        """The pixels of cubes (B, M), from 0 to 1: (B * M, pixels of a cube, channels)."""
        name = "rgb" if "rgb" in sample else "video"
        modality, pixels, frames = find_modality(name), sample[name], self.cube[0]
        patch = self.cube[1:] if name == "rgb" else self.cube
        tokens = prod(pixels.shape[1:-1]) // prod(patch)
        dtype = torch.float64 if pixels.dtype == torch.float64 else torch.float32
        rows = gather_patches(pixels, flat_rows(masked, tokens), patch, dtype=dtype).unflatten(1, (-1, CHANNELS))
        if pixels.is_floating_point():
            rows = rows * rows.new_tensor(modality.std) + rows.new_tensor(modality.mean)
        return rows.repeat(1, frames, 1) if name == "rgb" else rows
