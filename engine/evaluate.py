"""What a run has learned, measured on the val split.

Of a pre-trained encoder: do samples of one class lie together in its features? Nothing is trained for it; the same
encoder at its random start and the raw input are compared, so that a score says how much of it was learned. Of a
classifier: how often its first answer is right. Of a segmenter: how far the parts that it finds cover the true ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from omnitrunk.engine import durable
from omnitrunk.engine.data import Batch, DataConfig, evaluation_batches, open_index
from omnitrunk.engine.knn import knn_accuracy
from omnitrunk.engine.segmentation import shape_scores, summary
from omnitrunk.engine.step import autocast
from omnitrunk.models import Classifier, MaskedAutoencoder, PartSegmenter, PointClassifier, build_model

if TYPE_CHECKING:
    from omnitrunk.engine.config import RunConfig

BATCH = 64
"""Samples encoded at a time; without masking a batch takes several times the memory of training."""
FILE = "evaluation.json"
CLASSIFIERS = (Classifier, PointClassifier)
NAMES = {
    "trained": "trained encoder",
    "random": "the same, untrained",
    "raw": "raw input",
    "top1": "first answer",
    "instance_miou": "mean over shapes",
    "class_miou": "mean over classes",
}
"""What scores are called in the table; those of single classes have the names of the classes."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The k-nearest-neighbor probe of an encoder, the accuracy of a classifier, or the mean IoU of a segmenter."""

    every: int = 0
    """Steps between evaluations of the model, and a full one at the end; 0 never evaluates."""
    neighbors: int = 5
    """Samples of the train split that vote on each sample of the val split."""
    modality: str = ""
    """The input modality that features are computed from; empty takes the first one of the model."""
    pool: Literal["mean", "tokens"] = "mean"
    """What is compared by the probe: the mean over a sample's tokens; or all of them side by side, which keeps the
    places that they have in a picture, as the raw input does. The latter come before the final norm, which makes them
    equally long."""

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "tokens"):
            raise ValueError(f"evaluate.pool = {self.pool!r} must be mean or tokens")
        if self.every < 0 or self.neighbors < 1:
            raise ValueError(
                f"evaluate.every = {self.every} must be 0 or more and evaluate.neighbors = {self.neighbors} 1 or more"
            )


Features = Callable[[Batch], Tensor]
"""A batch to one vector per sample, (B, D)."""


def model_features(
    model: nn.Module, modality: str, device: torch.device, precision: str, pool: str = "mean"
) -> Features:
    """Features of a model from one modality, all its patches visible; `pool` as in EvaluateConfig."""
    encoded = model.features if pool == "mean" else model.encode
    if pool == "tokens" and isinstance(model, MaskedAutoencoder):
        encoded = partial(model.encode, normed=False)

    def compute(batch: Batch) -> Tensor:
        with torch.no_grad(), autocast(device, precision):
            return encoded(batch.tensors, (modality,)).float().flatten(1)

    return compute


def raw_features(modality: str) -> Features:
    """The input itself, pixels around the middle of their range: otherwise all pictures point in one direction."""

    def compute(batch: Batch) -> Tensor:
        values = batch.tensors[modality]
        center = 0.5 if values.dim() > 3 else 0.0
        return values.flatten(1).float() / (255 if values.dtype == torch.uint8 else 1) - center

    return compute


def probe(config: RunConfig, spaces: dict[str, Features], device: torch.device) -> dict[str, float]:
    """k-NN accuracy on the val split, by neighbors from the train split, in each of the named spaces."""
    modality = _modality(config)
    train, train_labels = _vectors(config.data, config.data.train_split, modality, spaces, device)
    val, val_labels = _vectors(config.data, config.data.val_split, modality, spaces, device)
    neighbors = config.evaluate.neighbors
    return {name: knn_accuracy(train[name], train_labels, val[name], val_labels, neighbors) for name in spaces}


def evaluate(config: RunConfig, model: nn.Module, device: torch.device) -> dict[str, float]:
    """Scores by name: "trained", "random" (the same encoder at its start) and "raw".

    Of a classifier it is "top1"; of a segmenter "instance_miou", "class_miou" and "miou/CLASS" of every class.
    """
    modality, precision = _modality(config), config.run.precision
    if isinstance(model, CLASSIFIERS):
        return {"top1": accuracy(config, model, device)}
    if isinstance(model, PartSegmenter):
        return part_scores(config, model, device)
    untrained = build_model(config.model, config.run.seed).to(device)
    spaces = {
        "trained": model_features(model, modality, device, precision, config.evaluate.pool),
        "random": model_features(untrained, modality, device, precision, config.evaluate.pool),
        "raw": raw_features(modality),
    }
    return probe(config, spaces, device)


def evaluate_briefly(config: RunConfig, model: nn.Module, device: torch.device) -> dict[str, float]:
    """What is logged while a run goes on: "knn" of the trained encoder, "top1", or both means of a segmenter."""
    if isinstance(model, (*CLASSIFIERS, PartSegmenter)):
        return briefly(evaluate(config, model, device))
    features = model_features(model, _modality(config), device, config.run.precision, config.evaluate.pool)
    return {"knn": probe(config, {"trained": features}, device)["trained"]}


def briefly(scores: dict[str, float]) -> dict[str, float]:
    """The scores of a full evaluation that belong into the log of a run."""
    if "trained" in scores:
        return {"knn": scores["trained"]}
    return {name: score for name, score in scores.items() if not name.startswith("miou/")}


def accuracy(config: RunConfig, model: Classifier | PointClassifier, device: torch.device) -> float:
    """How often the greatest logit is that of the right class, on the val split."""

    def compute(batch: Batch) -> Tensor:
        with torch.no_grad(), autocast(device, config.run.precision):
            return model.logits(batch.tensors).argmax(dim=1)

    data = config.data
    found, labels = _vectors(data, data.val_split, _modality(config), {"classes": compute}, device)
    return (found["classes"] == labels).double().mean().item()


def part_scores(config: RunConfig, model: PartSegmenter, device: torch.device) -> dict[str, float]:
    """Mean IoU of the parts found on the val split (engine.segmentation)."""

    def compute(batch: Batch) -> Tensor:
        with torch.no_grad(), autocast(device, config.run.precision):
            found = model.segment(batch.inputs)
        return shape_scores(found, batch.tensors["parts"], batch.labels, model.config.part_counts)

    data, modality = config.data, _modality(config)
    found, labels = _vectors(data, data.val_split, modality, {"parts": compute}, device)
    return summary(found["parts"], labels, open_index(data, data.val_split, (modality,)).classes)


def table(scores: dict[str, float], config: RunConfig) -> str:
    """The comparison as text."""
    measure = f"{config.evaluate.neighbors}-nearest-neighbor accuracy" if "trained" in scores else "accuracy"
    title = f"{'mean IoU of parts' if 'class_miou' in scores else measure} from {_modality(config)}"
    rows = ((NAMES.get(name, name.removeprefix("miou/")), score) for name, score in scores.items())
    return "\n".join([title, *(f"  {name:20} {100 * score:6.2f}%" for name, score in rows)])


def write_scores(folder: Path, scores: dict[str, float], config: RunConfig) -> Path:
    """Put the comparison next to the checkpoint it belongs to, as JSON."""
    record: dict[str, Any] = {"modality": _modality(config), "data": config.data.root}
    record |= {"knn": scores, "neighbors": config.evaluate.neighbors} if "trained" in scores else scores
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
    modality = _modality(config)
    if modality not in config.model.inputs:
        raise ValueError(
            f"evaluate.modality = {modality} is none of the model's inputs: {', '.join(config.model.inputs)}"
        )
    if config.data.source == "random":
        raise ValueError('evaluate.every needs a data set: set data.source = "folder", or evaluate.every = 0')
    for split in (config.data.val_split, config.data.train_split):
        samples = len(open_index(config.data, split, (modality,)))
    probed = not hasattr(config.model, "encoder_config")
    if probed and samples < config.evaluate.neighbors:
        raise ValueError(
            f"evaluate.neighbors = {config.evaluate.neighbors} is more than the {samples} training samples"
        )


def _modality(config: RunConfig) -> str:
    return config.evaluate.modality or config.model.inputs[0]
