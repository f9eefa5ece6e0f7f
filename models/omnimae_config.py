"""The configuration of an OmniMAE (Girdhar et al. 2023), and the parts that it chooses."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np

from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.checks import check_divides, check_least, check_rate, pair
from omnitrunk.models.decoders.project import ProjectDecoder
from omnitrunk.models.initialize import VIDEOMAE, Rules
from omnitrunk.models.layers.positions import interleaved_table
from omnitrunk.models.masking.policies import random_tokens
from omnitrunk.models.objectives import CHANNELS, RepeatedError
from omnitrunk.models.tokenizers.repeated import RepeatedTokenizer


@dataclass(frozen=True, kw_only=True)
class OmniMAEConfig(AutoencoderConfig):
    """Sizes and choices of an OmniMAE; the defaults are those of the published base model, on clips.

    The release has no oddity in pre-training that would have to be corrected: faithful or not, the model is the same.
    """

    system: Literal["omnimae"] = "omnimae"
    """Name of the system, by which a recipe chooses it."""
    modalities: tuple[Literal["video", "rgb"], ...] = ("video",)
    """What is trained on: clips, pictures, or both, each step one of them."""
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
    """Share of a clip's cubes that is masked; their number is rounded down."""
    image_mask_ratio: float = 0.9
    """The same for pictures."""

    initial_values: ClassVar[Rules] = VIDEOMAE

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modalities that are tokenized, each by itself."""
        return self.modalities

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the losses: the data sets."""
        return self.modalities

    @property
    def data_sets(self) -> dict[str, tuple[str, ...]]:
        """Data set -> the modalities of its samples: pictures and clips are a data set each, named as they are."""
        return {name: (name,) for name in self.modalities}

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
        return self.modalities == ("video",)

    @property
    def clip_tokens(self) -> int:
        """Cubes of a clip."""
        return prod(self.grid)

    @property
    def total_tokens(self) -> int:
        """Cubes N of a sample, of the data set that has most."""
        return max(map(self.tokens, self.modalities))

    @property
    def keep(self) -> int:
        """Visible cubes V of a sample, of the data set that has most."""
        return max(map(self.visible, self.modalities))

    def tokens(self, modality: str) -> int:
        """Cubes N of a picture ("rgb") or a clip ("video")."""
        return prod(self.grid if modality == "video" else self.grid[1:])

    def visible(self, modality: str) -> int:
        """Visible cubes V of a picture or a clip."""
        total = self.tokens(modality)
        return total - int(total * (self.mask_ratio if modality == "video" else self.image_mask_ratio))

    def idle(self) -> dict[str, str]:
        """Fields without effect -> why."""
        fields = {"video": "mask_ratio", "rgb": "image_mask_ratio"}
        return {field: f"modalities lacks {name}" for name, field in fields.items() if name not in self.modalities}

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
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities = {self.modalities} must name rgb, video or both, each once")
        check_rate("image_mask_ratio", self.image_mask_ratio)
        for name in self.modalities:
            if not 1 <= self.visible(name) < self.tokens(name):
                field = "mask_ratio" if name == "video" else "image_mask_ratio"
                raise ValueError(
                    f"{field} = {getattr(self, field)} leaves {self.visible(name)} of {self.tokens(name)} tokens "
                    "visible; choose one that leaves and masks at least one"
                )

    def visible_tokens(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """Visible cubes (B, V): a random subset of each sample, for a model of one data set."""
        return random_tokens(self.total_tokens, self.keep, seed=seed, positions=positions)

    def build_tokenizer(self) -> RepeatedTokenizer:
        """Cubes, with positions over the cube's number."""
        return RepeatedTokenizer("video", self.clip_shape, self.cube, interleaved_table(self.clip_tokens, self.width))

    def build_decoder(self) -> ProjectDecoder:
        """All places, mask tokens where nothing is visible."""
        return ProjectDecoder(self, interleaved_table(self.clip_tokens, self.width), prod(self.cube) * CHANNELS)

    def build_objective(self) -> RepeatedError:
        """Squared error of masked cubes."""
        return RepeatedError(
            output="norm_video", tokens=self.clip_tokens, cube=self.cube, channels=self.standardize_channels
        )
