"""Figures of a ranking by similarity, and what a ranking at random would give.

Q queries, G samples of the gallery. Samples that are equally similar share the mean of their places: a space in which
all is alike retrieves nothing, in whatever order its samples come.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def ranks(similarity: Tensor, own: Tensor) -> Tensor:
    """float64 (Q,): the places, from 1, of the gallery's samples `own` int64 (Q,), by `similarity` (Q, G)."""
    value = similarity.gather(1, own[:, None])
    above, tied = ((similarity > value).sum(dim=1), (similarity == value).sum(dim=1))
    return above + (tied + 1).double() / 2


def first_hits(similarity: Tensor, relevant: Tensor) -> Tensor:
    """float64 (Q,): whether the most similar sample is a relevant one; `relevant` is bool (Q, G)."""
    nearest = similarity == similarity.amax(dim=1, keepdim=True)
    return (nearest & relevant).sum(dim=1).double() / nearest.sum(dim=1)


def average_precisions(similarity: Tensor, relevant: Tensor) -> Tensor:
    """float64 (Q,): the mean, over the relevant samples of each query, of the precision at the place of each.

    At a place of several samples that are equally similar, the precision is that after all of them.
    """
    values, order = similarity.sort(dim=1, descending=True)
    hits = relevant.gather(1, order)
    last = torch.searchsorted(-values, -values, right=True)
    precision = hits.cumsum(dim=1).gather(1, last - 1).double() / last
    return (precision * hits).sum(dim=1) / hits.sum(dim=1)


def chance_average_precision(relevant: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """float64 (Q,): the expected average precision of a random order, `relevant` of `gallery` samples, int64 (Q,) each.

    At place k the expected precision, given that a relevant sample is there, is (1 + (k - 1)(R - 1)/(G - 1)) / k.
    """
    harmonic = np.cumsum(1 / np.arange(1, gallery.max() + 1))[gallery - 1]
    others = (relevant - 1) / np.maximum(gallery - 1, 1)
    return (harmonic + others * (gallery - harmonic)) / gallery
