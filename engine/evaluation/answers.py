"""What models with heads answer on the val split: for each data set the class that each sample is taken for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from omnitrunk.engine.data import Batch, open_index
from omnitrunk.engine.datasets import ONLY, DataSet, data_sets
from omnitrunk.engine.evaluation.samples import collect, mean_over_views
from omnitrunk.engine.step import autocast
from omnitrunk.models import Classifier, Omnivore, PointClassifier

if TYPE_CHECKING:
    from omnitrunk.engine.config import RunConfig

HEADED = (Classifier, PointClassifier, Omnivore)
"""Models that answer with a class."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The samples of one val split."""

    found: Tensor
    """int64 (samples,): the class with the greatest logit, the mean over the views of a sample."""
    labels: Tensor
    """int64 (samples,): the right one."""
    classes: tuple[str, ...]
    """Names by number."""

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return (self.found == self.labels).double().mean().item()


def answers(
    config: RunConfig, model: nn.Module, device: torch.device, sets: Mapping[str, DataSet] | None = None
) -> dict[str, Answers]:
    """The answers of a model on the val split of each of its data sets, or on those of `sets`."""
    return {
        name: _on(entry, config.run.precision, model, device)
        for name, entry in (data_sets(config) if sets is None else sets).items()
    }


def accuracies(found: Mapping[str, Answers]) -> dict[str, float]:
    """ "top1", and before it "top1/NAME" of the data sets that have names; it is the plain mean over all."""
    scores = {name: entry.accuracy for name, entry in found.items()}
    named = {f"top1/{name}": score for name, score in scores.items() if name != ONLY}
    return {**named, "top1": sum(scores.values()) / len(scores)}


def _on(entry: DataSet, precision: str, model: nn.Module, device: torch.device) -> Answers:
    named = (entry.name,) if isinstance(model, Omnivore) else ()

    def compute(batch: Batch) -> Tensor:
        with torch.no_grad(), autocast(device, precision):
            logits = model.logits(batch.tensors, *named)
        return mean_over_views(logits.float(), batch).argmax(dim=1)

    data = entry.data
    found = collect(data, data.val_split, entry.modalities, {"classes": compute}, device)
    classes = open_index(data, data.val_split, entry.modalities).classes
    return Answers(found=found.values["classes"], labels=found.labels, classes=tuple(classes))
