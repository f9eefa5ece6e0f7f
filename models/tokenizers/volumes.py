"""The tokenizer of shifted-window models: pictures and clips of any size to maps of tokens, a norm included.

Girdhar et al. 2022, section 3.1. B batch; T, H, W pixels along time, height and width, C channels; t, h, w tokens; D
width.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.kernels.patch_project import patch_project
from omnitrunk.models.layers.blocks import LayerNorm
from omnitrunk.models.layers.window_block import EPSILON, Triple
from omnitrunk.models.modality import find_modality


class VolumeTokenizer(nn.Module):
    """A linear projection of patches, values in (time, row, column, channel) order, and a LayerNorm.

    What is too short for whole patches counts as completed at its far ends with zeros, which are pixels of the mean
    color. Frames of zeros add nothing to a projection, so they are left out of it: a picture meets the weights of the
    first frames only.
    """

    def __init__(self, name: str, patch: Triple, width: int) -> None:
        """`name` of the modality that says how bytes are normalized, `patch` its frames, rows and columns."""
        super().__init__()
        self.modality, self.patch = find_modality(name), patch
        self.weight = nn.Parameter(torch.empty(width, prod(patch) * self.modality.channels))
        self.bias = nn.Parameter(torch.empty(width))
        self.norm = LayerNorm(width, EPSILON)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures (B, H, W, C) or clips (B, T, H, W, C), uint8 or floating and normalized -> (B, t, h, w, D)."""
        clips = self._completed(pixels if pixels.dim() == 5 else pixels[:, None])
        whole = clips.shape[1] - clips.shape[1] % self.patch[0]
        parts = [self._project(part) for part in (clips[:, :whole], clips[:, whole:]) if part.shape[1]]
        return self.norm(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))

    def blank(self) -> Tensor:
        """The token (D,) of a patch of zeros."""
        return self.norm(self.bias)

    def size(self, frames: int, height: int, width: int) -> Triple:
        """Tokens t, h, w of so many pixels."""
        return tuple(-(-extent // side) for extent, side in zip((frames, height, width), self.patch, strict=True))

    def flops(self, frames: int, height: int, width: int) -> int:
        """Matrix arithmetic for one sample."""
        _, down, across = self.size(frames, height, width)
        return 2 * frames * down * across * self.weight.numel() // self.patch[0]

    def _completed(self, clips: Tensor) -> Tensor:
        """Clips whose rows and columns are whole patches; bytes are normalized where they have to be completed."""
        missing_rows, missing_columns = (
            -extent % side for extent, side in zip(clips.shape[2:4], self.patch[1:], strict=True)
        )
        if not missing_rows and not missing_columns:
            return clips
        return functional.pad(self._normalized(clips), (0, 0, 0, missing_columns, 0, missing_rows))

    def _normalized(self, clips: Tensor) -> Tensor:
        if clips.is_floating_point():
            return clips
        values = clips.to(self.weight.dtype) / 255
        if self.modality.mean is None:
            return values
        return (values - values.new_tensor(self.modality.mean)) / values.new_tensor(self.modality.std)

    def _project(self, clips: Tensor) -> Tensor:
        """Clips whose length is a multiple of a patch's, or less than one -> (B, t, h, w, D)."""
        patch = (min(clips.shape[1], self.patch[0]), *self.patch[1:])
        size = (len(clips), *self.size(*clips.shape[1:4]))
        tokens = patch_project(
            clips,
            self.weight[:, : prod(patch) * self.modality.channels].contiguous(),
            self.bias,
            torch.arange(prod(size), device=clips.device),
            patch=patch,
            mean=self.modality.mean,
            std=self.modality.std,
        )
        return tokens.unflatten(0, size)
