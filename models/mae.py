"""MAE: masked autoencoding of images (He et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.checks import check_divides, check_least, pair
from omnitrunk.models.decoders.restore import RestoreDecoder
from omnitrunk.models.layers.positions import column_row_table, with_class_row
from omnitrunk.models.masking.policies import random_tokens, random_tokens_in_noise_order
from omnitrunk.models.objectives import PatchError
from omnitrunk.models.tokenizers.patches import PatchTokenizer

CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class MAEConfig(AutoencoderConfig):
    """Sizes and choices of an MAE; the defaults are those of the published base model.

    Faithful: the visible tokens stay in the order of the noise, and weight decay takes in class and mask token.
    """

    system: Literal["mae"] = "mae"
    """Name of the system, by which a recipe chooses it."""
    image_size: int | tuple[int, int] = 224
    """Pixels of the image, one number for a square or (height, width)."""
    patch_size: int = 16
    """Pixels for each side of a patch."""
    standardize_targets: bool = True
    """Bring every target patch to mean 0 and variance 1."""

    class_token: ClassVar[bool] = True

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that is tokenized."""
        return ("rgb",)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The modality that is reconstructed."""
        return ("norm_rgb",) if self.standardize_targets else ("rgb",)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return pair(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def total_tokens(self) -> int:
        """Patches N of an image."""
        rows, columns = self.grid
        return rows * columns

    @property
    def keep(self) -> int:
        """Visible patches V: what the ratio leaves, rounded down."""
        return int(self.total_tokens * (1 - self.mask_ratio))

    def check_sizes(self) -> None:
        """Raise ValueError where image and patch do not fit together."""
        check_least(self, {"patch_size": 1})
        check_divides("image_size", self.image_shape, (self.patch_size, self.patch_size))

    def visible_tokens(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """Visible patches (B, V): a random subset of each image."""
        policy = random_tokens_in_noise_order if self.faithful else random_tokens
        return policy(self.total_tokens, self.keep, seed=seed, positions=positions)

    def build_tokenizer(self) -> PatchTokenizer:
        """Patches, with the positions of MAE."""
        table = column_row_table(*self.grid, self.width)
        return PatchTokenizer("rgb", self.image_shape, self.patch_size, table)

    def build_decoder(self) -> RestoreDecoder:
        """All places, mask tokens where nothing is visible."""
        table = with_class_row(column_row_table(*self.grid, self.decoder_width))
        return RestoreDecoder(self, table, self.patch_size**2 * CHANNELS)

    def build_objective(self) -> PatchError:
        """Squared error of masked patches."""
        return PatchError(output=self.outputs[0], tokens=self.total_tokens, patch=self.patch_size)

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to a parameter."""
        return super().decays(name) or (self.faithful and name in ("class_token", "decoder.mask_token"))
