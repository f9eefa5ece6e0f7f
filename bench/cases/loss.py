"""Losses: reconstruction of masked patches, and the classification head."""

from __future__ import annotations

import torch
from torch import Tensor

from omnitrunk.bench.case import Case, random, ways, working_dtype
from omnitrunk.bench.cases.patches import GRID, PATCH, as_patches, picture_inputs
from omnitrunk.kernels import masked_patch_loss
from omnitrunk.kernels.linear_cross_entropy import OPERATION as CROSS_ENTROPY
from omnitrunk.kernels.linear_cross_entropy import cost as cross_entropy_cost
from omnitrunk.kernels.linear_cross_entropy import linear_cross_entropy
from omnitrunk.kernels.masked_patch_loss import OPERATION as MASKED
from omnitrunk.kernels.masked_patch_loss import cost as masked_cost

EPS = 1e-6


def masked_cases(device: str, quick: bool) -> list[Case]:
    """MAE's loss on normalized pixels of the masked three quarters of 224-pixel images."""
    images, dtype = (1024 if device == "cuda" else 8 if quick else 64), working_dtype(device)
    values = PATCH**2 * 3

    def inputs(seed: int) -> tuple:
        pixels, visible = picture_inputs(seed, images, device)
        masked = torch.ones(images * GRID**2, dtype=torch.bool, device=device).index_fill_(0, visible, False)
        index = masked.nonzero().squeeze(1)
        weight = torch.full((len(index),), 1 / len(index), device=device)
        return random(seed, len(index), values, dtype=dtype, device=device), pixels, index, weight

    def run(backend: str) -> object:
        def call(pred: Tensor, pixels: Tensor, index: Tensor, weight: Tensor) -> Tensor:
            options = {"patch": PATCH, "loss": "mse", "standardize": True, "backend": backend}
            return masked_patch_loss(pred, pixels, index, weight, **options)

        return call

    arguments, sizes = inputs(0), {"bytes_per_element": dtype.itemsize}
    rows = len(arguments[2])
    return [
        Case(
            operation="masked_patch_loss",
            shape=f"{images} images, {rows} masked patches of {values} values",
            inputs=inputs,
            contenders=ways(MASKED, run, arguments, **{"all patches": all_patches}),
            forward=masked_cost(rows, values, **sizes),
            backward=masked_cost(rows, values, **sizes),
            definition=run("reference"),
        )
    ]


def all_patches(pred: Tensor, pixels: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Patchify everything, standardize everything, mean of the masked ones: the usual chain (He et al. 2022)."""
    target = as_patches(pixels.float() / 255)
    mean, variance = target.mean(1, keepdim=True), target.var(1, keepdim=True)
    target = (target - mean) / (variance + EPS).sqrt()
    whole = torch.zeros_like(target).index_copy(0, index, pred.float())
    mask = torch.zeros(len(target), device=pred.device).index_copy(0, index, weight)
    return ((whole - target).square().mean(1) * mask).sum()


def cross_entropy_cases(device: str, quick: bool) -> list[Case]:
    """A token classifier of 8,192 classes, and ImageNet's 1,000."""
    shapes = [(102_400, 768, 8192), (4096, 768, 1000)] if device == "cuda" else [(1024, 384, 8192), (1024, 384, 1000)]
    return [_cross_entropy(device, *shape) for shape in (shapes[1:] if quick else shapes)]


def _cross_entropy(device: str, rows: int, width: int, classes: int) -> Case:
    dtype = working_dtype(device)

    def inputs(seed: int) -> tuple:
        generator = torch.Generator().manual_seed(seed)
        target = torch.randint(0, classes, (rows,), generator=generator).to(device)
        x = random(seed, rows, width, dtype=dtype, device=device)
        weight = random(seed + 1, classes, width, dtype=dtype, device=device, scale=width**-0.5)
        return x, weight, torch.zeros(classes, dtype=dtype, device=device, requires_grad=True), target

    def run(backend: str) -> object:
        return lambda x, weight, bias, target: linear_cross_entropy(x, weight, bias, target, backend=backend)

    sizes = {"bytes_per_element": dtype.itemsize}
    return Case(
        operation="linear_cross_entropy",
        shape=f"{rows} x {width} -> {classes}",
        inputs=inputs,
        contenders=ways(CROSS_ENTROPY, run, inputs(0)),
        forward=cross_entropy_cost(rows, width, classes, **sizes),
        backward=cross_entropy_cost(rows, width, classes, **sizes, backward=True),
        definition=run("reference"),
    )
