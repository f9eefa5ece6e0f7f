"""What predictions are compared with, and how; an objective maps (prediction, sample, masked) to a scalar.

B batch, M masked patches of a sample, P values of a patch. Only masked patches are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels.chamfer import chamfer
from omnitrunk.kernels.masked_patch_loss import masked_patch_loss
from omnitrunk.kernels.patches import gather_patches
from omnitrunk.models.masking.token_plan import flat_rows
from omnitrunk.models.modality import find_modality

STANDARDIZE_EPSILON = 1e-6
CHANNELS = 3
"""Of pictures and clips."""


@dataclass(frozen=True, kw_only=True)
class PatchError:
    """Mean squared error over all masked patches of a batch of images (He et al. 2022, sections 3 and 4.1).

    Predictions are of normalized pixels; the modality `output` may ask for every patch to be standardized over all its
    values.
    """

    output: str
    tokens: int
    """Patches N of an image."""
    patch: int | tuple[int, ...]

    def __call__(self, prediction: Tensor, sample: Mapping[str, Tensor], masked: Tensor) -> Tensor:
        """Prediction (B * M, P) and masked (B, M) -> a scalar."""
        modality = find_modality(self.output)
        wide = torch.promote_types(prediction.dtype, torch.float32)
        weight = torch.full(masked.shape, 1 / masked.numel(), dtype=wide, device=masked.device)
        return masked_patch_loss(
            prediction,
            sample[modality.data],
            flat_rows(masked, self.tokens),
            weight.flatten(),
            patch=self.patch,
            loss=modality.loss,
            standardize=modality.standardize_patches,
            mean=modality.mean,
            std=modality.std,
        )


@dataclass(frozen=True, kw_only=True)
class CubeError:
    """Mean squared error over all masked cubes of a batch of clips (Tong et al. 2022, as released).

    Predictions are of pixels from 0 to 1; the modality `output` may ask for every channel of every cube to be
    standardized: (x - mean) / (sqrt(variance) + 1e-6), the variance with denominator count - 1.
    """

    output: str
    tokens: int
    """Cubes N of a clip."""
    cube: tuple[int, int, int]
    """Frames, rows and columns of a cube."""

    def __call__(self, prediction: Tensor, sample: Mapping[str, Tensor], masked: Tensor) -> Tensor:
        """Prediction (B * M, P) and masked (B, M) -> a scalar."""
        wide = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        return functional.mse_loss(wide, self.target(sample, masked).to(wide.dtype))

    def target(self, sample: Mapping[str, Tensor], masked: Tensor) -> Tensor:
        """The targets (B * M, P) of cubes (B, M), values in (time, row, column, channel) order."""
        modality = find_modality(self.output)
        clips = sample[modality.data]
        rows = gather_patches(clips, flat_rows(masked, self.tokens), self.cube, dtype=_target_dtype(clips))
        values = rows.unflatten(1, (-1, modality.channels))
        if clips.is_floating_point():
            values = values * values.new_tensor(modality.std) + values.new_tensor(modality.mean)
        if modality.standardize_patches:
            variance, mean = torch.var_mean(values, dim=1, keepdim=True)
            values = (values - mean) / (variance.sqrt() + STANDARDIZE_EPSILON)
        return values.flatten(1)


@dataclass(frozen=True, kw_only=True)
class RepeatedError(CubeError):
    """Mean squared error over all masked cubes, those of a picture repeated (Girdhar et al. 2023, section 3.2).

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


@dataclass(frozen=True, kw_only=True)
class ChamferError:
    """Mean Chamfer distance over all masked groups of points, relative to their centers (Pang et al. 2022, 3.3)."""

    norm: Literal["l2", "l1"]
    """Squared distances, or distances; see kernels.chamfer."""

    def __call__(self, prediction: Tensor, sample: Mapping[str, Tensor], masked: Tensor) -> Tensor:
        """Prediction (B * M, 3 * k) and masked (B, M) of the sample's "groups" (B, G, k, 3) -> a scalar."""
        groups = sample["groups"]
        target = groups.flatten(0, 1).index_select(0, flat_rows(masked, groups.shape[1]))
        return chamfer(prediction.view(target.shape), target, norm=self.norm).mean()


def _target_dtype(pixels: Tensor) -> torch.dtype:
    return torch.float64 if pixels.dtype == torch.float64 else torch.float32
