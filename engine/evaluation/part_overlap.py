"""How well parts of shapes are told apart: intersection over union, as ShapeNetPart is scored (Yi et al. 2016).

Of one shape and one part it is the share of points that have the part both by the truth and by the answer, among those
that have it by either; 1 where none has it by either. A shape's score is the mean over the parts of its class, the
others left out. "Instance" is the mean over all shapes, "class" the mean over the classes' own means.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def shape_scores(found: Tensor, truth: Tensor, labels: Tensor, part_counts: Sequence[int]) -> Tensor:
    """float64 (B,): the score of each shape, parts int64 (B, N) by answer and truth, class int64 (B,).

    Parts are numbered through, `part_counts` of them in each class.
    """
    counts = torch.tensor(part_counts, device=found.device)
    owner = torch.arange(len(counts), device=found.device).repeat_interleave(counts)
    answered, true = (functional.one_hot(parts, len(owner)).bool() for parts in (found, truth))
    both, either = ((answered & true).sum(dim=1).double(), (answered | true).sum(dim=1).double())
    score = torch.where(either > 0, both / either.clamp(min=1), 1.0)
    own = owner == labels[:, None]
    return (score * own).sum(dim=1) / own.sum(dim=1)


def summary(scores: Tensor, labels: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """ "instance_miou", "class_miou", and "miou/NAME" of every class of which there is a shape."""
    means = {
        f"miou/{name}": scores[labels == number].mean().item()
        for number, name in enumerate(class_names)
        if (labels == number).any()
    }
    return {"instance_miou": scores.mean().item(), "class_miou": sum(means.values()) / len(means), **means}
