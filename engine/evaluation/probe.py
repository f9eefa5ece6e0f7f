"""The k-NN probe of an encoder, beside the same encoder at its random start and the raw input.

Do samples of one class lie together in its features? Nothing is trained for it; the comparison says how much of a score
was learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from omnitrunk.engine.evaluation.features import model_features, raw_features
from omnitrunk.engine.evaluation.knn import knn_accuracy
from omnitrunk.engine.evaluation.samples import Features, collect, find_data
from omnitrunk.models import build_model

if TYPE_CHECKING:
    from omnitrunk.engine.config import RunConfig

SPACES = ("trained", "random", "raw")
"""What is compared: the model as it is, at its random start, and the input."""


def probed_modality(config: RunConfig) -> str:
    """What features are computed from."""
    return config.evaluate.modality or config.model.inputs[0]


def spaces_of(config: RunConfig, model: nn.Module, device: torch.device, *, brief: bool) -> dict[str, Features]:
    """The spaces by name; of a brief comparison the trained one alone."""
    data, modalities = find_data(config, probed_modality(config))
    how = modalities, device, config.run.precision, config.evaluate
    spaces = {"trained": model_features(model, *how)}
    if brief:
        return spaces
    untrained = build_model(config.model, config.run.seed).to(device)
    raw = raw_features(modalities, depth_center=0.5 if data.depth_as == "stored" else 0.0)
    return {**spaces, "random": model_features(untrained, *how), "raw": raw}


def probe(config: RunConfig, spaces: dict[str, Features], device: torch.device) -> dict[str, float]:
    """k-NN accuracy on the val split, by neighbors from the train split, in each of the named spaces."""
    data, modalities = find_data(config, probed_modality(config))
    train, val = (collect(data, split, modalities, spaces, device) for split in (data.train_split, data.val_split))
    settings = config.evaluate.neighbors, config.evaluate.vote
    return {
        name: knn_accuracy(train.values[name], train.labels, val.values[name], val.labels, *settings) for name in spaces
    }
