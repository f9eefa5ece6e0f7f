"""Which classes one model tells apart better than another: F1 of each, on the data sets that both have.

Girdhar et al. 2022, figures 3, 6 and 7: what joint training gives to single classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from omnitrunk.engine import durable
from omnitrunk.engine.evaluation.answers import Answers

FILE = "gains.json"


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One class; F1 is the harmonic mean of precision and recall, 0 where nothing is right."""

    dataset: str
    label: str
    f1: float
    other_f1: float

    @property
    def difference(self) -> float:
        """Above 0 where the model is better than the other."""
        return self.f1 - self.other_f1


def f1_scores(found: Tensor, labels: Tensor, classes: int) -> Tensor:
    """float64 (classes,), from the answers and the right classes int64 (samples,); 0 where a class does not occur."""
    answered, true = (torch.bincount(values, minlength=classes)[:classes] for values in (found, labels))
    right = torch.bincount(labels[found == labels], minlength=classes)
    return 2 * right.double() / (answered + true).clamp(min=1)


def gains(mine: Mapping[str, Answers], other: Mapping[str, Answers]) -> list[Gain]:
    """Every class of every data set that both have answers for, the greatest gain first.

    ValueError where there is no such data set, or where the samples of one are not the same.
    """
    shared = [name for name in mine if name in other]
    if not shared:
        raise ValueError(f"--against: the runs share no data set; they have {', '.join(mine)} and {', '.join(other)}")
    found = [gain for name in shared for gain in _of(name, mine[name], other[name])]
    return sorted(found, key=lambda gain: -gain.difference)


def _of(name: str, mine: Answers, other: Answers) -> list[Gain]:
    if mine.classes != other.classes or not torch.equal(mine.labels, other.labels):
        raise ValueError(f"--against: the runs have other val samples of {name}; give both the same data and val_split")
    scores = (f1_scores(answers.found, answers.labels, len(mine.classes)).tolist() for answers in (mine, other))
    return [
        Gain(dataset=name, label=label, f1=f1, other_f1=other_f1)
        for label, f1, other_f1 in zip(mine.classes, *scores, strict=True)
    ]


def counts(found: Sequence[Gain]) -> dict[str, dict[str, int]]:
    """Data set -> how many of its classes are better, worse, and equal."""
    table = {gain.dataset: {"better": 0, "worse": 0, "equal": 0} for gain in found}
    for gain in found:
        table[gain.dataset]["better" if gain.difference > 0 else "worse" if gain.difference < 0 else "equal"] += 1
    return table


def table(found: Sequence[Gain], other: str) -> str:
    """The gains as text, sorted, and their counts below."""
    lines = [f"F1 of classes, against {other}", f"  {'':32} {'F1':>7} {'other':>7} {'gain':>8}"]
    for gain in found:
        name = f"{gain.dataset}/{gain.label}"
        lines.append(f"  {name:32} {100 * gain.f1:7.2f} {100 * gain.other_f1:7.2f} {100 * gain.difference:+8.2f}")
    for name, count in counts(found).items():
        lines.append(f"  {name}: " + ", ".join(f"{number} {kind}" for kind, number in count.items()))
    return "\n".join(lines)


def write_gains(folder: Path, found: Sequence[Gain], other: str) -> Path:
    """Put the gains next to the checkpoint they belong to, as JSON."""
    classes = [{**vars(gain), "difference": gain.difference} for gain in found]
    record = {"against": other, "counts": counts(found), "classes": classes}
    durable.write_text(folder / FILE, json.dumps(record, indent=1) + "\n")
    return folder / FILE
