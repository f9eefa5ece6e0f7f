"""What a run has learned, measured on the val split; here is chosen by what a model is measured.

Of an encoder: do samples of one class lie together in its features? Of a model with heads: how often its first answer
is right, on every data set that it knows. Of a segmenter: how far the parts or classes that it finds cover the true
ones. Where evaluate.retrieval asks for it: are the nearest samples of another modality the right ones?
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from omnitrunk.engine import checkpoint, durable
from omnitrunk.engine.data import Batch, DataConfig, open_index
from omnitrunk.engine.data.index import check_classes
from omnitrunk.engine.data.loader import read_strides
from omnitrunk.engine.datasets import data_sets
from omnitrunk.engine.evaluation import retrieval
from omnitrunk.engine.evaluation.answers import HEADED, accuracies, answers
from omnitrunk.engine.evaluation.config import EvaluateConfig, check_stage
from omnitrunk.engine.evaluation.map_overlap import segmented
from omnitrunk.engine.evaluation.part_overlap import shape_scores, summary
from omnitrunk.engine.evaluation.probe import SPACES, probe, probed_modality, spaces_of
from omnitrunk.engine.evaluation.samples import collect, find_data
from omnitrunk.engine.step import autocast
from omnitrunk.models import OmnivoreConfig, OmnivoreSegmenter, PartSegmenter

if TYPE_CHECKING:
    from omnitrunk.engine.config import RunConfig

__all__ = ["EvaluateConfig", "briefly", "check_evaluation", "evaluate", "evaluate_briefly", "table", "write_scores"]

NAMES = {
    "trained": "trained encoder",
    "random": "the same, untrained",
    "raw": "raw input",
    "top1": "first answer",
    "instance_miou": "mean over shapes",
    "class_miou": "mean over classes",
    "miou": "mean over classes",
    "pixel_accuracy": "right pixels",
}
"""What scores are called in the table; those of single classes and data sets have the names of these."""


def evaluate(config: RunConfig, model: nn.Module, device: torch.device) -> dict[str, float]:
    """Scores by name: "trained", "random" (the same encoder at its start) and "raw".

    Of a model with heads it is "top1", with "top1/NAME" of every data set that it knows by name; of a segmenter
    "instance_miou", "class_miou" and "miou/CLASS" of every class, or those of engine.evaluation.map_overlap. Retrieval
    adds "PAIR/FIGURE", and "PAIR/FIGURE/chance" and "PAIR/FIGURE/untrained" to compare it with.
    """
    return _measure(config, model, device, brief=False)


def evaluate_briefly(config: RunConfig, model: nn.Module, device: torch.device) -> dict[str, float]:
    """What is logged while a run goes on; as `briefly`, and only that is computed."""
    return briefly(_measure(config, model, device, brief=True))


def briefly(scores: dict[str, float]) -> dict[str, float]:
    """The scores of a full evaluation that belong into the log of a run.

    They are "knn" of the trained encoder, all accuracies, both means of a segmenter, and of retrieval how often the
    first one is right.
    """
    kept = {name: score for name, score in scores.items() if "/" not in name and name not in SPACES}
    kept |= {name: score for name, score in scores.items() if name.startswith("top1/")}
    kept |= {name: score for name, score in scores.items() if name.endswith(retrieval.BRIEF)}
    return kept | ({"knn": scores["trained"]} if "trained" in scores else {})


def _measure(config: RunConfig, model: nn.Module, device: torch.device, *, brief: bool) -> dict[str, float]:
    if isinstance(model, PartSegmenter):
        return part_scores(config, model, device)
    if isinstance(model, OmnivoreSegmenter):
        return segmented(config, model, device)
    scores = accuracies(answers(config, model, device)) if isinstance(model, HEADED) else {}
    if _is_probed(config):
        scores |= probe(config, spaces_of(config, model, device, brief=brief), device)
    if config.evaluate.retrieval and _has_features(config):
        scores |= retrieval.retrieve(config, model, device, brief=brief)
    return scores


def _is_probed(config: RunConfig) -> bool:
    """Whether neighbors are asked: of encoders, and of Omnivores where a modality is named."""
    return _has_features(config) and (not _has_answers(config) or bool(config.evaluate.modality))


def _has_answers(config: RunConfig) -> bool:
    """Whether the model is measured by what it says about whole samples, each of its data sets by itself."""
    return isinstance(config.model, OmnivoreConfig) or not _has_features(config)


def _has_features(config: RunConfig) -> bool:
    """Whether the model is one of modalities; fine-tuned encoders are measured by their answers alone."""
    return not hasattr(config.model, "encoder_config")


def part_scores(config: RunConfig, model: PartSegmenter, device: torch.device) -> dict[str, float]:
    """Mean IoU of the parts found on the val split (engine.evaluation.part_overlap)."""

    def compute(batch: Batch) -> Tensor:
        with torch.no_grad(), autocast(device, config.run.precision):
            found = model.segment(batch.inputs)
        return shape_scores(found, batch.tensors["parts"], batch.labels, model.config.part_counts)

    data, modalities = config.data, config.model.inputs[:1]
    found = collect(data, data.val_split, modalities, {"parts": compute}, device)
    return summary(found.values["parts"], found.labels, open_index(data, data.val_split, modalities).classes)


def table(scores: dict[str, float], config: RunConfig) -> str:
    """The scores as text, a block for each kind."""
    pairs = [pair for pair in config.evaluate.retrieval if any(name.startswith(f"{pair}/") for name in scores)]
    retrieved = {name for name in scores for pair in pairs if name.startswith(f"{pair}/")}
    answered = {name: score for name, score in scores.items() if name not in retrieved and name not in SPACES}
    probed = {name: score for name, score in scores.items() if name in SPACES}
    blocks = []
    if answered:
        measures = {"class_miou": "mean IoU of parts", "miou": "IoU of classes of pixels"}
        measure = next((words for name, words in measures.items() if name in scores), "accuracy")
        blocks.append(_block(f"{measure} from {', '.join(config.model.inputs)}", answered))
    if probed:
        title = f"{config.evaluate.neighbors}-nearest-neighbor accuracy from {probed_modality(config)}"
        blocks.append(_block(title, probed))
    if pairs:
        blocks.append(retrieval.table(scores, pairs))
    return "\n".join(blocks)


def _block(title: str, scores: dict[str, float]) -> str:
    named = any(name.startswith("top1/") for name in scores)
    names = NAMES | ({"top1": "mean over data sets"} if named else {})
    rows = ((names.get(name, name.partition("/")[2]), score) for name, score in scores.items())
    return "\n".join([title, *(f"  {name:20} {100 * score:6.2f}%" for name, score in rows)])


def write_scores(folder: Path, scores: dict[str, float], config: RunConfig) -> Path:
    """Put the scores next to the checkpoint they belong to, as JSON."""
    roots = {name: entry.data.root for name, entry in data_sets(config).items()}
    record: dict[str, Any] = {"data": next(iter(roots.values())) if len(roots) == 1 else roots}
    if probed := {name: scores[name] for name in SPACES if name in scores}:
        how = config.evaluate
        record |= {"modality": probed_modality(config), "knn": probed, "neighbors": how.neighbors}
        record |= {"vote": how.vote, "pool": how.pool, "stage": how.stage}
    record |= {name: score for name, score in scores.items() if name not in SPACES}
    durable.write_text(folder / checkpoint.SCORES, json.dumps(record, indent=1) + "\n")
    return folder / checkpoint.SCORES


def check_evaluation(config: RunConfig) -> None:
    """ValueError, before the run starts, if the evaluations it asks for could not be made."""
    draws = config.log.images_every and config.evaluate.retrieval and not getattr(config.model, "drawn", True)
    if not config.evaluate.every and not draws:
        return
    wanted = [(entry.data, entry.modalities) for entry in data_sets(config).values()] if _has_answers(config) else []
    if _has_features(config):
        check_stage(config.model, config.evaluate.stage)
        wanted += [find_data(config, name) for pair in config.evaluate.pairs.values() for name in pair]
    if _is_probed(config):
        wanted.append(find_data(config, probed_modality(config)))
    for data, _ in wanted:
        if data.source == "random":
            needy = "evaluate.every" if config.evaluate.every else "log.images_every"
            raise ValueError(f'{needy} needs a data set: set data.source = "folder", or {needy} = 0')
    for data, modalities in wanted:
        _check_split(data, modalities)
    if _is_probed(config):
        data, modalities = wanted[-1]
        samples = len(open_index(data, data.train_split, modalities))
        if samples < config.evaluate.neighbors:
            raise ValueError(
                f"evaluate.neighbors = {config.evaluate.neighbors} is more than the {samples} training samples"
            )


def _check_split(data: DataConfig, modalities: Sequence[str]) -> None:
    """ValueError where evaluation could not open the val split, or would find other classes than in training."""
    names = list(read_strides(modalities, data.size))
    check_classes(data, open_index(data, data.val_split, names), data.val_split, names)
