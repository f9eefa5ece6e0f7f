"""From maps to tokens: visible patches are cut out, projected to the trunk's width and given their positions.

Only the patches asked for are read. Shapes: B batch, M patches asked for, n patches of the map, C channels, D trunk
width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.kernels.linear import linear
from omnitrunk.kernels.patch_project import patch_project
from omnitrunk.kernels.patches import copy_patches
from omnitrunk.models.layers.positions import fitted_table, stored_table
from omnitrunk.models.modality import Modality, find_modality
from omnitrunk.models.multimae_config import MultiMAEConfig


def build_tokenizer(name: str, config: MultiMAEConfig) -> PixelTokenizer | ClassTokenizer:
    """The tokenizer of an input."""
    modality = find_modality(name)
    return (PixelTokenizer if modality.kind == "pixels" else ClassTokenizer)(modality, config)


class Tokenizer(nn.Module):
    """What both kinds share: the projection's parameters and the frozen position table."""

    def __init__(self, modality: Modality, config: MultiMAEConfig, values: int) -> None:
        super().__init__()
        self.modality, self.config, self.patch = modality, config, config.patch(modality.name)
        self.weight = nn.Parameter(torch.empty(config.width, values))
        self.bias = nn.Parameter(torch.empty(config.width))
        self.register_buffer("position", stored_table(config, modality.name, config.width))
        self.refresh()

    def refresh(self) -> None:
        """Derive the table of the actual grid from the stored one, which a checkpoint may have replaced."""
        name, mode = self.modality.name, self.modality.faithful_interpolation
        self.register_buffer("fitted", fitted_table(self.config, name, self.position, mode), persistent=False)


class PixelTokenizer(Tokenizer):
    """A linear projection of the pixels of a patch, in (row, column, channel) order."""

    def __init__(self, modality: Modality, config: MultiMAEConfig) -> None:
        super().__init__(modality, config, config.patch(modality.name) ** 2 * modality.channels)

    def forward(self, pixels: Tensor, index: Tensor) -> Tensor:
        """Pixels (B, H, W, C), uint8 or floating, at flat rows index (M,) -> (M, D)."""
        mean, std = self.modality.mean, self.modality.std
        return patch_project(
            pixels, self.weight, self.bias, index, patch=self.patch, position=self.fitted, mean=mean, std=std
        )


class ClassTokenizer(Tokenizer):
    """A linear projection of the learned vectors of a patch's classes, in (row, column, vector) order."""

    def __init__(self, modality: Modality, config: MultiMAEConfig) -> None:
        super().__init__(modality, config, config.patch(modality.name) ** 2 * config.class_embedding_width)
        self.class_embedding = nn.Parameter(torch.empty(config.semseg_classes, config.class_embedding_width))

    def forward(self, classes: Tensor, index: Tensor) -> Tensor:
        """Class map (B, h, w) of integers at flat rows index (M,) -> (M, D)."""
        patches = copy_patches(classes.unsqueeze(-1), index, self.patch).long()
        vectors = functional.embedding(patches, self.class_embedding).flatten(1)
        return linear(vectors, self.weight, self.bias) + self.fitted.index_select(0, index % len(self.fitted))
