"""The k-nearest-neighbor probe: how well do classes lie together in a space, without training anything?"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 1024
"""Queries compared at a time: bounds the memory of the table of similarities."""
TEMPERATURE = 0.07


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    val: Tensor,
    val_labels: Tensor,
    neighbors: int,
    vote: Literal["count", "weighted"] = "count",
) -> float:
    """The share of `val` (V, D) whose label wins the vote of its `neighbors` nearest in `train` (M, D) by cosine.

    Labels are int64 (M,) and (V,). By "count" each neighbor has one vote, and classes with equally many are ordered by
    the sum of their similarities; "weighted" votes are exp(similarity / 0.07) (Wu et al. 2018, section 3.4).
    """
    if len(train) < neighbors:
        raise ValueError(f"evaluate.neighbors = {neighbors} is more than the {len(train)} samples of the train split")
    train, val = functional.normalize(train.float(), dim=1), functional.normalize(val.float(), dim=1)
    classes = int(torch.cat([train_labels, val_labels]).max()) + 1
    right = 0
    for rows, truth in zip(val.split(ROWS), val_labels.split(ROWS), strict=True):
        similarity, nearest = (rows @ train.T).topk(neighbors, dim=1)
        tally = torch.zeros(len(rows), classes, device=rows.device)
        tally.scatter_add_(1, train_labels[nearest], _votes(similarity, vote))
        right += int((tally.argmax(dim=1) == truth).sum())
    return right / len(val)


def _votes(similarity: Tensor, vote: str) -> Tensor:
    """The weight of each neighbor, (rows, neighbors)."""
    if vote == "weighted":
        return (similarity / TEMPERATURE).exp()
    # A similarity is at most 1, so the sum over all neighbors, scaled like this, never outweighs one vote.
    return 1 + similarity / (2 * similarity.shape[1] + 1)
