"""From what a data set writes as labels to numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

UNLABELED = "unlabeled"
"""Name of the one class of a data set without labels."""


def number_labels(words: Sequence[str], where: str) -> tuple[np.ndarray, list[str], bool]:
    """Labels int64 (samples,), the name of each, and whether the numbers are those of the data set.

    Whole numbers from 0 stand for themselves. Other words are numbered in the order of their names. Where nothing has a
    label ("") everything is of one class; ValueError where only some have one.
    """
    bare = sum(not word for word in words)
    if bare == len(words):
        return np.zeros(bare, dtype=np.int64), [UNLABELED], False
    if bare:
        raise ValueError(f"{bare} of {len(words)} samples of {where} have no label: label all of them, or none")
    if all(word.isascii() and word.isdigit() for word in words):
        labels = np.array([int(word) for word in words], dtype=np.int64)
        return labels, [str(label) for label in range(labels.max() + 1)], True
    classes = sorted(set(words))
    places = {name: place for place, name in enumerate(classes)}
    return np.array([places[word] for word in words], dtype=np.int64), classes, False
