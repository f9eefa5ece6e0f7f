"""The losses of the plain peer on full prediction images: computed everywhere, then masked."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def standardize_patches(image: Tensor, patch: int) -> Tensor:
    """Every patch of (B, C, H, W) to mean 0 and variance 1 over all its values (unbiased, 1e-6 inside the root)."""
    batch, channels, height, width = image.shape
    tiles = image.reshape(batch, channels, height // patch, patch, width // patch, patch)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(3)
    tiles = (tiles - tiles.mean(-1, keepdim=True)) / (tiles.var(-1, keepdim=True) + 1e-6).sqrt()
    tiles = tiles.unflatten(-1, (channels, patch, patch)).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(image.shape)


def masked_mean(error: Tensor, mask: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """Mean of the pixel errors (B, h, w) over the masked pixels of each sample, then over the samples that have some.

    `mask` (B, n) 1 = masked on a `grid` of patches, enlarged to pixels here; None takes all pixels.
    """
    if mask is None:
        return error.mean()
    if mask.sum() == 0:
        return error.new_zeros(())
    pixels = F.interpolate(mask.unflatten(1, grid)[:, None].to(error.dtype), size=error.shape[1:], mode="nearest")
    pixels = pixels[:, 0]
    per_sample = (error * pixels).flatten(1).sum(1) / pixels.flatten(1).sum(1)
    return per_sample.nanmean()


def pixel_errors(task: str, prediction: Tensor, target: Tensor, patch: int) -> Tensor:
    """Errors (B, h, w) of one task: cross-entropy for class maps, L1 for depth, squared for rgb and norm_rgb."""
    if task == "semseg":
        return F.cross_entropy(prediction, target, reduction="none")
    if task == "depth":
        return (prediction - target).abs().mean(dim=1)
    if task == "norm_rgb":
        target = standardize_patches(target, patch)
    return (prediction - target).square().mean(dim=1)
