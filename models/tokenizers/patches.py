"""The tokenizer of autoencoders of pixels: visible patches of images, or cubes of clips, projected and placed.

Only the patches asked for are read. Shapes: B batch, K tokens asked for, N tokens of a sample, C channels, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from omnitrunk.kernels.patch_project import patch_project
from omnitrunk.models.masking.token_plan import flat_rows
from omnitrunk.models.modality import find_modality


class PatchTokenizer(nn.Module):
    """A linear projection of the values of a patch, in (time, row, column, channel) order, and a frozen position."""

    def __init__(self, name: str, shape: tuple[int, ...], patch: int | tuple[int, ...], table: Tensor) -> None:
        """`shape` of a sample without channels, `patch` its side or one length per axis, `table` (N, D)."""
        super().__init__()
        self.modality, self.shape, self.patch = find_modality(name), shape, patch
        lengths = (patch,) * len(shape) if isinstance(patch, int) else patch
        values = prod(lengths) * self.modality.channels
        self.weight = nn.Parameter(torch.empty(table.shape[1], values))
        self.bias = nn.Parameter(torch.empty(table.shape[1]))
        self.register_buffer("position", table)

    def prepare(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The pixels (B, ..., C) of a batch, uint8 or floating and normalized; ValueError where they do not fit."""
        name = self.modality.name
        if name not in tensors:
            raise ValueError(f"the batch has no {name!r}; add it to the data or choose another system")
        if (found := tuple(tensors[name].shape[1:-1])) != self.shape:
            raise ValueError(f"{name} is {found}; the model takes {self.shape}: change the model's sizes or resize")
        return {name: tensors[name]}

    def forward(self, sample: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Tokens (B, K, D) of the patches int64 (B, K)."""
        tokens = patch_project(
            sample[self.modality.name],
            self.weight,
            self.bias,
            flat_rows(index, len(self.position)),
            patch=self.patch,
            position=self.position,
            mean=self.modality.mean,
            std=self.modality.std,
        )
        return tokens.unflatten(0, index.shape)

    def flops(self, _samples: int, rows: int) -> int:
        """Matrix arithmetic of the forward pass for so many patches of all samples together."""
        return 2 * rows * self.weight.numel()
