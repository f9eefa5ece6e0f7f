"""Visible patches: gathered and normalized alone, and projected to tokens, against the orders that people write."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.bench.case import OURS, Case, random, ways, working_dtype
from omnitrunk.kernels import patch_project
from omnitrunk.kernels.patch_project import OPERATION, cost
from omnitrunk.kernels.patches import cost as gather_cost
from omnitrunk.kernels.patches import gather_patches

PATCH, GRID, KEPT = 16, 14, 49
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def gather_cases(device: str, quick: bool) -> list[Case]:
    """A quarter of the patches of 224-pixel images, normalized."""
    images = 256 if device == "cuda" else 16 if quick else 128
    return [
        Case(
            operation="gather_patches",
            shape=f"{images} x {KEPT} of {GRID**2} patches",
            inputs=lambda seed: picture_inputs(seed, images, device),
            contenders={
                OURS: lambda pixels, index: gather_patches(pixels, index, PATCH, mean=MEAN, std=STD),
                "torch, gather first": gather_then_normalize,
                "torch, normalize first": normalize_then_gather,
            },
            forward=gather_cost(images * KEPT, PATCH**2 * 3),
        )
    ]


def project_cases(device: str, quick: bool) -> list[Case]:
    """ViT-B's patch embedding of the same patches, with positions."""
    images, width = (1024 if device == "cuda" else 8 if quick else 32), 768
    dtype = working_dtype(device)

    def inputs(seed: int) -> tuple:
        pixels, index = picture_inputs(seed, images, device)
        shapes = ((width, PATCH**2 * 3), (width,), (GRID**2, width))
        weights = (
            random(3 * seed + i, *shape, dtype=dtype, device=device, scale=0.02) for i, shape in enumerate(shapes)
        )
        return pixels, index, *weights

    def run(backend: str) -> object:
        def call(pixels: Tensor, index: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
            options = {"patch": PATCH, "position": position, "mean": MEAN, "std": STD}
            return patch_project(pixels, weight, bias, index, **options, backend=backend)

        return call

    sizes = {"bytes_per_element": dtype.itemsize}
    return [
        Case(
            operation="patch_project",
            shape=f"ViT-B: {images} x {KEPT} of {GRID**2} patches",
            inputs=inputs,
            contenders=ways(OPERATION, run, inputs(0), **{"convolution, all patches": convolution}),
            forward=cost(images * KEPT, PATCH**2 * 3, width, **sizes),
            backward=cost(images * KEPT, PATCH**2 * 3, width, **sizes, backward=True),
            definition=run("reference"),
        )
    ]


def picture_inputs(seed: int, images: int, device: str) -> tuple[Tensor, Tensor]:
    """Bytes (B, H, W, C), and the index of a random quarter of the patches of each image, ascending."""
    rng, side = np.random.default_rng(seed), GRID * PATCH
    pixels = torch.from_numpy(rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8))
    kept = rng.permuted(np.tile(np.arange(GRID**2), (images, 1)), axis=1)[:, :KEPT]
    index = torch.from_numpy((np.sort(kept, axis=1) + GRID**2 * np.arange(images)[:, None]).ravel())
    return pixels.to(device), index.to(device)


def as_patches(pixels: Tensor) -> Tensor:
    """(B, H, W, C) -> (B * n, p * p * C), values in (row, column, channel) order."""
    tiles = pixels.unflatten(2, (GRID, PATCH)).unflatten(1, (GRID, PATCH))
    return tiles.transpose(2, 3).reshape(-1, PATCH * PATCH * pixels.shape[3])


def normalize_then_gather(pixels: Tensor, index: Tensor) -> Tensor:
    """All pixels are normalized, as data loaders do, and a quarter of the patches is kept."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    return as_patches((pixels.float() / 255 - mean) / std).index_select(0, index)


def gather_then_normalize(pixels: Tensor, index: Tensor) -> Tensor:
    """The better order: patches are picked as bytes, and only those are normalized."""
    mean, std = (torch.tensor(values, device=pixels.device).repeat(PATCH**2) for values in (MEAN, STD))
    return (as_patches(pixels).index_select(0, index).float() / 255 - mean) / std


def convolution(pixels: Tensor, index: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
    """Normalize, convolve all patches, add positions, pick the visible ones: the usual patch embedding."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    images = ((pixels.float() / 255 - mean) / std).to(weight.dtype).permute(0, 3, 1, 2)
    kernel = weight.unflatten(1, (PATCH, PATCH, 3)).permute(0, 3, 1, 2)
    tokens = functional.conv2d(images, kernel, bias, stride=PATCH).flatten(2).transpose(1, 2) + position
    return tokens.flatten(0, 1).index_select(0, index)
