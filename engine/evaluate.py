"""The probe of a run: do samples of one class lie together in the model's features? Nothing is trained for it.

The trained encoder is compared with the same encoder at its random start and with raw pixels, so that a score says how
much of it was learned.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omnitrunk.engine import durable
from omnitrunk.engine.data import Batch, DataConfig, evaluation_batches
from omnitrunk.engine.data.folder import FolderIndex
from omnitrunk.engine.knn import knn_accuracy
from omnitrunk.engine.step import autocast
from omnitrunk.models import MultiMAE

if TYPE_CHECKING:
    from omnitrunk.engine.config import RunConfig

BATCH = 64
"""Samples encoded at a time; without masking a batch takes several times the memory of training."""
FILE = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The k-nearest-neighbor probe."""

    every: int = 0
    """Steps between evaluations of the trained encoder, and a full one at the end; 0 never evaluates."""
    neighbors: int = 5
    """Samples of the train split that vote on each sample of the val split."""
    modality: str = "rgb"
    """The input modality that features are computed from."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.neighbors < 1:
            raise ValueError(
                f"evaluate.every = {self.every} must be 0 or more and evaluate.neighbors = {self.neighbors} 1 or more"
            )


Features = Callable[[Batch], Tensor]
"""A batch to one vector per sample, (B, D)."""


def model_features(model: MultiMAE, modality: str, device: torch.device, precision: str) -> Features:
    """Features of a model from one modality, all its patches visible."""

    def compute(batch: Batch) -> Tensor:
        with torch.no_grad(), autocast(device, precision):
            return model.features(batch.tensors, (modality,)).float()

    return compute


def pixel_features(modality: str) -> Features:
    """The pixels themselves, around the middle of their range: without it all pictures point in one direction."""

    def compute(batch: Batch) -> Tensor:
        pixels = batch.tensors[modality]
        return pixels.flatten(1).float() / (255 if pixels.dtype == torch.uint8 else 1) - 0.5

    return compute


def probe(config: RunConfig, spaces: dict[str, Features], device: torch.device) -> dict[str, float]:
    """k-NN accuracy on the val split, by neighbors from the train split, in each of the named spaces."""
    train, train_labels = _vectors(config.data, config.data.train_split, config.evaluate.modality, spaces, device)
    val, val_labels = _vectors(config.data, config.data.val_split, config.evaluate.modality, spaces, device)
    neighbors = config.evaluate.neighbors
    return {name: knn_accuracy(train[name], train_labels, val[name], val_labels, neighbors) for name in spaces}


def evaluate(config: RunConfig, model: MultiMAE, device: torch.device) -> dict[str, float]:
    """The full comparison: "trained", "random" (the same encoder at its start) and "pixels"."""
    modality, precision = config.evaluate.modality, config.run.precision
    untrained = MultiMAE(config.model, config.run.seed).to(device)
    spaces = {
        "trained": model_features(model, modality, device, precision),
        "random": model_features(untrained, modality, device, precision),
        "pixels": pixel_features(modality),
    }
    return probe(config, spaces, device)


def table(scores: dict[str, float], config: RunConfig) -> str:
    """The comparison as text."""
    title = f"{config.evaluate.neighbors}-nearest-neighbor accuracy from {config.evaluate.modality}"
    names = {"trained": "trained encoder", "random": "the same, untrained", "pixels": "raw pixels"}
    return "\n".join([title, *(f"  {names[name]:20} {100 * score:6.2f}%" for name, score in scores.items())])


def write_scores(folder: Path, scores: dict[str, float], config: RunConfig) -> Path:
    """Put the comparison next to the checkpoint it belongs to, as JSON."""
    record: dict[str, Any] = {"knn": scores, "neighbors": config.evaluate.neighbors}
    record |= {"modality": config.evaluate.modality, "data": config.data.root}
    durable.write_text(folder / FILE, json.dumps(record, indent=1) + "\n")
    return folder / FILE


def _vectors(
    data: DataConfig, split: str, modality: str, spaces: dict[str, Features], device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    found: dict[str, list[Tensor]] = {name: [] for name in spaces}
    labels = []
    batches = evaluation_batches(data, split, (modality,), BATCH, device=device)
    try:
        for batch in batches:
            labels.append(batch.labels)
            for name, features in spaces.items():
                found[name].append(features(batch))
    finally:
        batches.close()
    return {name: torch.cat(vectors) for name, vectors in found.items()}, torch.cat(labels)


def check_evaluation(config: RunConfig) -> None:
    """ValueError, before the run starts, if the evaluations it asks for could not be made."""
    if not config.evaluate.every:
        return
    if config.evaluate.modality not in config.model.inputs:
        raise ValueError(
            f"evaluate.modality = {config.evaluate.modality} is none of model.inputs {config.model.inputs}"
        )
    if config.data.source != "folder":
        raise ValueError('evaluate.every needs a data set: set data.source = "folder", or evaluate.every = 0')
    for split in (config.data.val_split, config.data.train_split):
        samples = len(FolderIndex(config.data.root, split, (config.evaluate.modality,)))
    if samples < config.evaluate.neighbors:
        raise ValueError(
            f"evaluate.neighbors = {config.evaluate.neighbors} is more than the {samples} training samples"
        )
