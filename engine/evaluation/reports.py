"""The reports of `omnitrunk eval`: each is a text, and a file next to the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omnitrunk.engine.evaluate import evaluate, table, write_scores
from omnitrunk.engine.evaluation import clip_lengths, gains
from omnitrunk.engine.evaluation.answers import HEADED, Answers, answers

if TYPE_CHECKING:
    from omnitrunk.engine.restore import Trained

Report = tuple[str, Path]
"""What is printed, and where it was written in full."""


def scores_of(trained: Trained) -> Report:
    """All that the model is measured by."""
    scores = evaluate(trained.config, trained.model, trained.device)
    return table(scores, trained.config), write_scores(trained.folder, scores, trained.config)


def accuracy_by_length(trained: Trained, lengths: Sequence[int]) -> Report:
    """The accuracy with clips of other lengths."""
    points = clip_lengths.clip_length_curve(trained.config, trained.model, trained.device, lengths)
    return clip_lengths.table(points), clip_lengths.write_curve(trained.folder, points)


def gains_against(trained: Trained, other: Trained) -> Report:
    """F1 of every class, compared with that of another model."""
    found = gains.gains(_answers(trained), _answers(other))
    name = str(other.folder)
    return gains.table(found, name), gains.write_gains(trained.folder, found, name)


def _answers(trained: Trained) -> dict[str, Answers]:
    if not isinstance(trained.model, HEADED):
        raise ValueError(f"--against compares models that answer with a class; {trained.folder} holds none")
    return answers(trained.config, trained.model, trained.device)
