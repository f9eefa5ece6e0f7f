"""Visible patches: gathered and normalized alone, and projected to tokens, against the orders that people write."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.bench.case import OURS, Case, random, ways, working_dtype
from omnitrunk.kernels import patch_project
from omnitrunk.kernels.patch_project import OPERATION, cost
from omnitrunk.kernels.patches import cost as gather_cost
from omnitrunk.kernels.patches import gather_patches

PATCH, GRID, WIDTH = 16, 14, 768
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Visible:
    """Patches of (frames, rows, columns) that tile a sample in a grid, `kept` of them visible."""

    name: str
    noun: str
    patch: tuple[int, int, int]
    grid: tuple[int, int, int]
    kept: int

    @property
    def values(self) -> int:
        """P, the values of a patch in RGB."""
        return 3 * prod(self.patch)

    def count(self, samples: int) -> str:
        """The patches of some samples, in words."""
        return f"{samples} x {self.kept} of {prod(self.grid)} {self.noun}"


IMAGES = Visible(name="ViT-B", noun="patches", patch=(1, PATCH, PATCH), grid=(1, GRID, GRID), kept=49)
CLIPS = Visible(name="VideoMAE-B", noun="tubelets", patch=(2, PATCH, PATCH), grid=(8, GRID, GRID), kept=160)


def gather_cases(device: str, quick: bool) -> list[Case]:
    """A quarter of the patches of 224-pixel images and, unless quick, a tenth of the tubelets of clips, normalized."""
    images, clips = (256, 32) if device == "cuda" else (16 if quick else 128, 8)
    return [_gather(*case, device) for case in ((IMAGES, images), (CLIPS, clips))[: 1 if quick else 2]]


def project_cases(device: str, quick: bool) -> list[Case]:
    """The patch embeddings of ViT-B and, unless quick, of VideoMAE-B, with positions."""
    images, clips = (1024, 128) if device == "cuda" else (8 if quick else 32, 8)
    return [_project(*case, device) for case in ((IMAGES, images), (CLIPS, clips))[: 1 if quick else 2]]


def _gather(visible: Visible, samples: int, device: str) -> Case:
    return Case(
        operation="gather_patches",
        shape=visible.count(samples),
        inputs=lambda seed: picture_inputs(seed, samples, device, visible),
        contenders={
            OURS: lambda pixels, index: gather_patches(pixels, index, visible.patch, mean=MEAN, std=STD),
            "torch, gather first": lambda *inputs: gather_then_normalize(visible, *inputs),
            "torch, normalize first": lambda *inputs: normalize_then_gather(visible, *inputs),
        },
        forward=gather_cost(samples * visible.kept, visible.values),
    )


def _project(visible: Visible, samples: int, device: str) -> Case:
    dtype = working_dtype(device)

    def inputs(seed: int) -> tuple:
        pixels, index = picture_inputs(seed, samples, device, visible)
        shapes = ((WIDTH, visible.values), (WIDTH,), (prod(visible.grid), WIDTH))
        weights = (
            random(3 * seed + i, *shape, dtype=dtype, device=device, scale=0.02) for i, shape in enumerate(shapes)
        )
        return pixels, index, *weights

    def run(backend: str) -> object:
        def call(pixels: Tensor, index: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
            options = {"patch": visible.patch, "position": position, "mean": MEAN, "std": STD}
            return patch_project(pixels, weight, bias, index, **options, backend=backend)

        return call

    peers = {"convolution, all patches": lambda *tensors: convolution(visible, *tensors)}
    sizes = {"bytes_per_element": dtype.itemsize}
    return Case(
        operation="patch_project",
        shape=f"{visible.name}: {visible.count(samples)}",
        inputs=inputs,
        contenders=ways(OPERATION, run, inputs(0), **peers),
        forward=cost(samples * visible.kept, visible.values, WIDTH, **sizes),
        backward=cost(samples * visible.kept, visible.values, WIDTH, **sizes, backward=True),
        definition=run("reference"),
    )


def picture_inputs(seed: int, samples: int, device: str, visible: Visible = IMAGES) -> tuple[Tensor, Tensor]:
    """Bytes (B, H, W, C) or (B, T, H, W, C), and the index of random patches of each sample, ascending."""
    rng, patches = np.random.default_rng(seed), prod(visible.grid)
    sides = [count * side for count, side in zip(visible.grid, visible.patch, strict=True)]
    pixels = torch.from_numpy(rng.integers(0, 256, (samples, *sides[sides[0] == 1 :], 3), dtype=np.uint8))
    kept = rng.permuted(np.tile(np.arange(patches), (samples, 1)), axis=1)[:, : visible.kept]
    index = torch.from_numpy((np.sort(kept, axis=1) + patches * np.arange(samples)[:, None]).ravel())
    return pixels.to(device), index.to(device)


def as_patches(pixels: Tensor, visible: Visible = IMAGES) -> Tensor:
    """(B, H, W, C) or (B, T, H, W, C) -> (B * n, P), values in (time, row, column, channel) order."""
    tiles = pixels.unsqueeze(1) if pixels.dim() == 4 else pixels
    for axis in (3, 2, 1):
        tiles = tiles.unflatten(axis, (visible.grid[axis - 1], visible.patch[axis - 1]))
    return tiles.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, visible.values)


def normalize_then_gather(visible: Visible, pixels: Tensor, index: Tensor) -> Tensor:
    """All pixels are normalized, as data loaders do, and some of the patches are kept."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    return as_patches((pixels.float() / 255 - mean) / std, visible).index_select(0, index)


def gather_then_normalize(visible: Visible, pixels: Tensor, index: Tensor) -> Tensor:
    """The better order: patches are picked as bytes, and only those are normalized."""
    mean, std = (torch.tensor(values, device=pixels.device).repeat(prod(visible.patch)) for values in (MEAN, STD))
    return (as_patches(pixels, visible).index_select(0, index).float() / 255 - mean) / std


def convolution(
    visible: Visible, pixels: Tensor, index: Tensor, weight: Tensor, bias: Tensor, position: Tensor
) -> Tensor:
    """Normalize, convolve all patches, add positions, pick the visible ones: the usual patch embedding."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    clips = ((pixels.float() / 255 - mean) / std).to(weight.dtype).movedim(-1, 1)
    sides = visible.patch[-(pixels.dim() - 2) :]
    kernel = weight.unflatten(1, (*sides, 3)).movedim(-1, 1)
    convolve = functional.conv3d if pixels.dim() == 5 else functional.conv2d
    tokens = convolve(clips, kernel, bias, stride=sides).flatten(2).transpose(1, 2) + position
    return tokens.flatten(0, 1).index_select(0, index)
