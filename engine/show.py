"""What a model makes of what it does not see: input, visible part, prediction and target of every output.

Shapes: B batch, n patches of an output, p side of a patch, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from omnitrunk.engine.colors import class_colors, scale_colors
from omnitrunk.engine.data import Batch, Loader
from omnitrunk.engine.description import describe
from omnitrunk.engine.sheet import Panel, compose
from omnitrunk.engine.step import autocast
from omnitrunk.models import MODALITIES, MaskPlan, Modality, MultiMAE

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnitrunk.engine.config import RunConfig

HIDDEN = 128
"""Grey level of what the model does not see."""


def draw_sheet(config: RunConfig, model: MultiMAE, device: torch.device, *, samples: int = 6) -> Image:
    """A sheet of `samples` pictures of the val split, nearly uncropped, the same ones every time."""
    seed, names = config.run.seed, (*config.model.inputs, *config.model.outputs)
    data = replace(config.data, train_split=config.data.val_split, batch=samples, crop_area=(1.0, 1.0), flip=False)
    with Loader(
        data, names, seed=seed, device=device, make_plan=lambda positions: model.plan(seed, positions)
    ) as loader:
        panels = reconstruct(model, next(loader), config.run.precision)
    return compose(panels, describe(config.data.root).get("semseg_names", ()))


@torch.no_grad()
def reconstruct(model: MultiMAE, batch: Batch, precision: str) -> list[Panel]:
    """One panel per output of the model, pictures uint8 (B, H, W, 3)."""
    with autocast(batch.labels.device, precision):
        predictions = model.predict(batch.tensors, batch.plan)
        maps = model.prepare(batch.tensors)
    plan = batch.plan.to("cpu", non_blocking=False)
    return [
        _panel(model, MODALITIES[name], maps[MODALITIES[name].data].cpu(), rows.float().cpu(), plan)
        for name, rows in predictions.items()
    ]


def _panel(model: MultiMAE, modality: Modality, target: Tensor, rows: Tensor, plan: MaskPlan) -> Panel:
    config, name = model.config, modality.name
    patch, grid = config.patch(name), config.grid(name)
    truth = _patches(_in_model_space(modality, target), patch)
    found, classes = rows.unflatten(-1, (patch**2, -1)), ()
    if modality.kind == "classes":
        found = found.argmax(dim=-1, keepdim=True).float()
        classes = tuple(torch.cat([truth, found]).unique().int().tolist())
    elif modality.standardize_patches:
        found = _undo_patch_standardization(found, truth)
    painted_truth, painted = _paint(modality, truth, truth), _paint(modality, found, truth)
    masked = _mask(model, name, plan).numpy()[:, :, None, None]
    pictures = {
        "input": painted_truth,
        "masked": np.where(masked, np.uint8(HIDDEN), painted_truth),
        "prediction": np.where(masked, painted, painted_truth),
        "target": painted_truth,
    }
    images = {column: _images(patches, grid, patch) for column, patches in pictures.items()}
    return Panel(name=name, pictures=images, classes=classes)


def _in_model_space(modality: Modality, target: Tensor) -> Tensor:
    """The map as losses see it, float (B, H, W, C)."""
    if modality.kind == "classes":
        return target[..., None].float()
    if target.dtype != torch.uint8:
        return target
    return (target / 255 - _channels(modality.mean, 0.0)) / _channels(modality.std, 1.0)


def _undo_patch_standardization(found: Tensor, truth: Tensor) -> Tensor:
    """Give predicted patches (B, n, p * p, C) the mean and deviation that their targets have, all channels together."""
    variance, mean = torch.var_mean(truth, dim=(2, 3), keepdim=True)
    return found * (variance + 1e-6).sqrt() + mean


def _paint(modality: Modality, values: Tensor, truth: Tensor) -> np.ndarray:
    """Patches (B, n, p * p, C) as colors, uint8 (B, n, p * p, 3); a scale runs over each sample's range of `truth`."""
    if modality.kind == "classes":
        ids = values[..., 0].numpy().astype(np.int64)
        return class_colors(int(ids.max()) + 1)[ids]
    if modality.channels == 3:
        pixels = values * _channels(modality.std, 1.0) + _channels(modality.mean, 0.0)
        return (255 * pixels).round().clamp(0, 255).byte().numpy()
    first = truth[..., 0].flatten(1)
    low, high = (edge[:, None, None] for edge in (first.amin(dim=1), first.amax(dim=1)))
    return scale_colors(((values[..., 0] - low) / (high - low).clamp(min=1e-6)).numpy())


def _mask(model: MultiMAE, output: str, plan: MaskPlan) -> Tensor:
    """Where an output is masked, bool (B, n); everywhere, if it is no input."""
    config, source = model.config, model.config.masked_like(output)
    if source is None:
        return torch.ones(len(plan.mask), config.tokens(output), dtype=torch.bool)
    offset = sum(map(config.tokens, config.inputs[: config.inputs.index(source)]))
    return plan.mask[:, offset : offset + config.tokens(source)]


def _channels(values: tuple[float, ...] | None, default: float) -> Tensor:
    return torch.tensor(default if values is None else values)


def _patches(images: Tensor, patch: int) -> Tensor:
    """(B, H, W, C) -> (B, n, p * p, C)."""
    tiles = images.unflatten(1, (-1, patch)).unflatten(3, (-1, patch)).transpose(2, 3)
    return tiles.flatten(3, 4).flatten(1, 2)


def _images(patches: np.ndarray, grid: tuple[int, int], patch: int) -> np.ndarray:
    """(B, n, p * p, 3) -> (B, H, W, 3)."""
    tiles = patches.reshape(len(patches), *grid, patch, patch, 3)
    return tiles.swapaxes(2, 3).reshape(len(patches), grid[0] * patch, grid[1] * patch, 3)
