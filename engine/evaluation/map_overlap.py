"""How well the pixels of pictures are told apart: intersection over union of classes, as NYUv2 and ADE20K are scored.

Of one class it is the share of pixels that have it both by the truth and by the answer, among those that have it by
either, over all pictures together (Everingham et al. 2015, section 4.2). Pixels without a label do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnitrunk.engine.data import Batch
from omnitrunk.engine.datasets import data_sets
from omnitrunk.engine.description import describe
from omnitrunk.engine.evaluation.samples import collect
from omnitrunk.engine.step import autocast
from omnitrunk.models import OmnivoreSegmenter
from omnitrunk.models.omnivore_segmenter import IGNORED

if TYPE_CHECKING:
    from omnitrunk.engine.config import RunConfig

PICTURES = 8
"""Pictures segmented at a time: the maps of the head are many times as large as what other models keep."""


def segmented(config: RunConfig, model: OmnivoreSegmenter, device: torch.device) -> dict[str, float]:
    """The scores of the maps found on the val split; see `map_scores`."""

    def compute(batch: Batch) -> Tensor:
        parts = zip(*(tensor.split(PICTURES) for tensor in batch.tensors.values()), strict=True)
        with torch.no_grad(), autocast(device, config.run.precision):
            found = torch.cat([model.segment(dict(zip(batch.tensors, part, strict=True))) for part in parts])
        return count_pixels(found, batch.tensors["semseg"], model.config.classes, IGNORED)

    (entry,) = data_sets(config).values()
    counts = collect(entry.data, entry.data.val_split, entry.modalities, {"pixels": compute}, device).values["pixels"]
    return map_scores(counts, describe(entry.data.root).get("semseg_names", ()))


def count_pixels(found: Tensor, truth: Tensor, classes: int, ignored: int) -> Tensor:
    """int64 (B, 3, classes): pixels of each class by both, by the answer and by the truth; maps (B, H, W) of integers.

    Pixels whose truth is `ignored` are left out.
    """
    labelled = truth != ignored
    # What is left out goes to a class of its own, and its column is dropped.
    answered, true = (torch.where(labelled, ids.long(), classes).flatten(1) for ids in (found, truth))
    both = torch.where(answered == true, true, classes)
    counts = torch.zeros(len(truth), 3, classes + 1, dtype=torch.int64, device=truth.device)
    for row, ids in enumerate((both, answered, true)):
        counts[:, row].scatter_add_(1, ids, torch.ones_like(ids))
    return counts[:, :, :classes]


def map_scores(counts: Tensor, names: Sequence[str] = ()) -> dict[str, float]:
    """ "miou", "pixel_accuracy", and "iou/NAME" of every class that is there by truth or answer.

    `counts` are those of any number of pictures, (B, 3, classes). Classes without a name are called by their number.
    """
    both, answered, true = counts.sum(dim=0).double()
    either = answered + true - both
    shares = (both / either).tolist()
    scores = {
        f"iou/{names[number] if number < len(names) else number}": share
        for number, share in enumerate(shares)
        if either[number]
    }
    mean = sum(scores.values()) / max(1, len(scores))
    return {"miou": mean, "pixel_accuracy": (both.sum() / true.sum().clamp(min=1)).item(), **scores}
