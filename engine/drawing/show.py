"""What a model makes of what it does not see: input, visible part, prediction and target of every output.

Pictures are drawn as they are, clips as three of their frames, spectrograms with time to the right and low tones below.
Shapes: B batch, n patches of an output, p values of a patch and channel, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from omnitrunk.engine.data import Batch, Loader, open_index
from omnitrunk.engine.data.loader import read_strides
from omnitrunk.engine.description import describe
from omnitrunk.engine.drawing.clouds import cloud_panel, parts_panel
from omnitrunk.engine.drawing.colors import class_colors, scale_colors
from omnitrunk.engine.drawing.maps import maps_panel
from omnitrunk.engine.drawing.neighbors import draw_neighbors
from omnitrunk.engine.drawing.scales import draw_scales
from omnitrunk.engine.drawing.sheet import Panel, compose
from omnitrunk.engine.drawing.tiles import from_patches, to_patches
from omnitrunk.engine.evaluation.samples import find_data
from omnitrunk.engine.step import autocast
from omnitrunk.models import (
    MODALITIES,
    Classifier,
    ClassifierConfig,
    Modality,
    MultiMAEConfig,
    OmnivoreSegmenter,
    PartSegmenter,
    PointClassifier,
    PointClassifierConfig,
)
from omnitrunk.models.masking.plan import Plan
from omnitrunk.models.omnivore_segmenter import IGNORED
from omnitrunk.models.pathway import scales

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnitrunk.engine.config import RunConfig
    from omnitrunk.engine.data import DataConfig

HIDDEN = 128
"""Grey level of what the model does not see."""
FRAMES = 3
"""Frames of a clip that are drawn side by side: the first, the last, and those in between."""

ROWS, MOST_ROWS = 6, 64
"""Samples on a sheet, where nothing is said and at most: more make a picture that few programs open."""


def check_picture(path: Path, samples: int | None) -> None:
    """ValueError, before any work, where a sheet of so many samples could not be drawn or written to `path`."""
    from PIL import Image

    if samples is not None and not 1 <= samples <= MOST_ROWS:
        raise ValueError(f"--samples {samples} must lie in 1 to {MOST_ROWS}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} to: make it first")
    try:
        Image.new("RGB", (1, 1)).save(BytesIO(), Image.registered_extensions()[path.suffix.lower()])
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"{path} must end as pictures do, such as .png or .jpg") from error


def rows_of(config: RunConfig, asked: int | None) -> int:
    """Rows of a sheet: those asked for, else ROWS or as many as there are. ValueError where there are fewer."""
    there, where = MOST_ROWS, ""
    for data, modalities in _shown(config):
        index = open_index(data, data.val_split, list(read_strides(modalities, data.size)))
        there, where = min((there, where), (len(index), str(Path(data.root) / data.val_split)))
    if asked is not None and asked > there:
        raise ValueError(f"--samples {asked} is more than the {there} samples of {where}")
    return asked or min(ROWS, there)


def _shown(config: RunConfig) -> list[tuple[DataConfig, tuple[str, ...]]]:
    """The data whose val split gives the rows of a sheet, and what is read of it; none where no samples are drawn."""
    if not getattr(config.model, "drawn", True):
        return [find_data(config, query) for query, _ in config.evaluate.pairs.values()]
    silent = isinstance(config.model, (ClassifierConfig, PointClassifierConfig)) or config.data.source == "random"
    return [] if silent else [(config.data, config.model.reads)]


def draw_sheet(config: RunConfig, model: nn.Module, device: torch.device, *, samples: int = ROWS) -> Image:
    """A sheet of `samples` pictures of the val split, nearly uncropped, the same ones every time.

    A classifier reconstructs nothing: of it the scales of its pathways are drawn. ValueError where it has none. Of a
    segmenter it is the parts or maps that it finds; of a model without reconstructions, the neighbors that its
    retrieval finds.
    """
    if isinstance(model, (Classifier, PointClassifier)):
        return draw_scales(scales(model), [Path(path).name for path in config.pathway.auxiliaries])
    if not getattr(config.model, "drawn", True):
        if config.evaluate.retrieval:
            return draw_neighbors(config, model, device, samples=samples)
        raise ValueError(
            f"this {config.model.system} reconstructs no pictures; to draw what it finds across modalities instead, "
            'name a pair of them, such as evaluate.retrieval = ["depth->rgb"]'
        )
    seed, names = config.run.seed, config.model.reads
    plain = {"crop_area": (1.0, 1.0), "flip": False, "point_scale": (1.0, 1.0), "point_shift": 0.0}
    plain |= {"randaugment": 0, "color_jitter": 0.0, "copies": 1, "train_share": 1.0}
    data = replace(config.data, train_split=config.data.val_split, batch=samples, **plain)
    with Loader(
        data, names, seed=seed, device=device, make_plan=lambda positions: model.plan(seed, positions)
    ) as loader:
        batch = next(loader)
    if isinstance(model, OmnivoreSegmenter):
        with torch.no_grad(), autocast(device, config.run.precision):
            found = model.segment(batch.inputs)
        panel = maps_panel(batch.tensors, found, batch.tensors["semseg"], IGNORED)
        return compose([panel], describe(config.data.root).get("semseg_names", ()))
    if isinstance(model, PartSegmenter):
        return compose([segment(model, batch, config.run.precision)], ("of another class",))
    return compose(reconstruct(model, batch, config.run.precision), describe(config.data.root).get("semseg_names", ()))


@torch.no_grad()
def segment(model: PartSegmenter, batch: Batch, precision: str) -> Panel:
    """The parts of clouds as the model finds them, and as they are."""
    with autocast(batch.labels.device, precision):
        found = model.segment(batch.inputs)
    first = torch.tensor(model.config.first_parts, device=batch.labels.device)[batch.labels]
    return parts_panel(batch.tensors["points"], found, batch.tensors["parts"], first)


@torch.no_grad()
def reconstruct(model: nn.Module, batch: Batch, precision: str) -> list[Panel]:
    """One panel per output of the model, pictures uint8 (B, H, W, 3)."""
    with autocast(batch.labels.device, precision):
        predictions = model.predict(batch.tensors, batch.plan)
        sample = model.prepare(batch.tensors)
    plan = batch.plan.to("cpu", non_blocking=False)
    sample = {name: tensor.cpu() for name, tensor in sample.items()}
    return [
        cloud_panel(name, sample, rows.float().cpu(), plan.mask)
        if MODALITIES[name].kind == "points"
        else _panel(model, MODALITIES[name], sample[MODALITIES[name].data], rows.float().cpu(), plan)
        for name, rows in predictions.items()
    ]


def _panel(model: nn.Module, modality: Modality, target: Tensor, rows: Tensor, plan: Plan) -> Panel:
    patch, grid = _cut(model, modality.name)
    truth = to_patches(_in_model_space(modality, target), patch)
    found, classes = rows.unflatten(-1, (truth.shape[2], -1)), ()
    if modality.kind == "classes":
        found = found.argmax(dim=-1, keepdim=True).float()
        classes = tuple(torch.cat([truth, found]).unique().int().tolist())
    elif modality.standardize_patches:
        found = _undo_patch_standardization(modality, found, truth)
    painted_truth, painted = _paint(modality, truth, truth), _paint(modality, found.nan_to_num(), truth)
    masked = _mask(model, modality.name, plan).numpy()[:, :, None, None]
    pictures = {
        "input": painted_truth,
        "masked": np.where(masked, np.uint8(HIDDEN), painted_truth),
        "prediction": np.where(masked, painted, painted_truth),
        "target": painted_truth,
    }
    images = {column: _lay_out(modality, from_patches(tiles, grid, patch)) for column, tiles in pictures.items()}
    scale = modality.data if modality.channels == 1 and not classes else ""
    return Panel(name=modality.name, pictures=images, classes=classes, scale=scale)


def _cut(model: nn.Module, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Values of a patch along every axis, and patches along every axis."""
    if isinstance(model.config, MultiMAEConfig):
        return (model.config.patch(name),) * 2, model.config.grid(name)
    patch, grid = model.tokenizer.patch, model.config.grid
    return (patch,) * len(grid) if isinstance(patch, int) else patch, grid


def _in_model_space(modality: Modality, target: Tensor) -> Tensor:
    """The map as losses see it, float (B, *shape, C)."""
    if modality.kind == "classes":
        return target[..., None].float()
    mean, std = _scale(modality)
    if target.dtype == torch.uint8:
        return (target / 255 - mean) / std
    if modality.kind == "clips":
        return target * _channels(modality.std, 1.0) + _channels(modality.mean, 0.0)
    return target


def _undo_patch_standardization(modality: Modality, found: Tensor, truth: Tensor) -> Tensor:
    """Give predicted patches (B, n, p, C) the mean and deviation of their targets: of all channels, clips of each."""
    together = 2 if modality.kind == "clips" else (2, 3)
    variance, mean = torch.var_mean(truth, dim=together, keepdim=True)
    return found * (variance + 1e-6).sqrt() + mean


def _paint(modality: Modality, values: Tensor, truth: Tensor) -> np.ndarray:
    """Patches (B, n, p, C) as colors, uint8 (B, n, p, 3); a scale runs over each sample's range of `truth`."""
    if modality.kind == "classes":
        ids = values[..., 0].numpy().astype(np.int64)
        return class_colors(int(ids.max()) + 1)[ids]
    if modality.channels == 3:
        mean, std = _scale(modality)
        return (255 * (values * std + mean)).round().clamp(0, 255).byte().numpy()
    first = truth[..., 0].flatten(1)
    low, high = (edge[:, None, None] for edge in (first.amin(dim=1), first.amax(dim=1)))
    return scale_colors(((values[..., 0] - low) / (high - low).clamp(min=1e-6)).numpy())


def _scale(modality: Modality) -> tuple[Tensor, Tensor]:
    """Mean and deviation that losses see pixels by; those of clips see them as they are, from 0 to 1."""
    if modality.kind == "clips":
        return torch.zeros(()), torch.ones(())
    return _channels(modality.mean, 0.0), _channels(modality.std, 1.0)


def _lay_out(modality: Modality, volumes: np.ndarray) -> np.ndarray:
    """Colors (B, *shape, 3) as pictures (B, H, W, 3)."""
    if modality.kind == "clips":
        frames = np.linspace(0, volumes.shape[1] - 1, min(FRAMES, volumes.shape[1])).round().astype(int)
        return np.concatenate([volumes[:, frame] for frame in frames], axis=2)
    if modality.data == "audio":
        return volumes.swapaxes(1, 2)[:, ::-1]
    return volumes


def _mask(model: nn.Module, output: str, plan: Plan) -> Tensor:
    """Where an output is masked, bool (B, n); everywhere, if it is no input."""
    config = model.config
    if not isinstance(config, MultiMAEConfig):
        return plan.mask
    source = config.masked_like(output)
    if source is None:
        return torch.ones(len(plan.mask), config.tokens(output), dtype=torch.bool)
    offset = sum(map(config.tokens, config.inputs[: config.inputs.index(source)]))
    return plan.mask[:, offset : offset + config.tokens(source)]


def _channels(values: tuple[float, ...] | None, default: float) -> Tensor:
    return torch.tensor(default if values is None else values)
