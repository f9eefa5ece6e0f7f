"""The k-nearest-neighbor probe: how well do classes lie together in a space, without training anything?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 1024
"""Queries compared at a time: bounds the memory of the table of similarities."""


def knn_accuracy(train: Tensor, train_labels: Tensor, val: Tensor, val_labels: Tensor, neighbors: int) -> float:
    """The share of `val` (V, D) whose label is the majority among its `neighbors` nearest in `train` (M, D) by cosine.

    Labels are int64 (M,) and (V,). Classes with equally many votes are ordered by the sum of their similarities
    (Wu et al. 2018, section 3.4, weigh all votes; here the count comes first).
    """
    if len(train) < neighbors:
        raise ValueError(f"evaluate.neighbors = {neighbors} is more than the {len(train)} samples of the train split")
    train, val = functional.normalize(train.float(), dim=1), functional.normalize(val.float(), dim=1)
    classes = int(torch.cat([train_labels, val_labels]).max()) + 1
    right = 0
    for rows, truth in zip(val.split(ROWS), val_labels.split(ROWS), strict=True):
        similarity, nearest = (rows @ train.T).topk(neighbors, dim=1)
        # A similarity is at most 1, so the sum over all neighbors, scaled like this, never outweighs one vote.
        votes = 1 + similarity / (2 * neighbors + 1)
        tally = torch.zeros(len(rows), classes, device=rows.device).scatter_add_(1, train_labels[nearest], votes)
        right += int((tally.argmax(dim=1) == truth).sum())
    return right / len(val)
