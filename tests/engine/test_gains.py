from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from omnitrunk.engine.evaluation.answers import Answers, accuracies
from omnitrunk.engine.evaluation.gains import counts, f1_scores, gains, table, write_gains


def answered(found, labels, classes=("ape", "bee", "cow")):
    return Answers(found=torch.tensor(found), labels=torch.tensor(labels), classes=tuple(classes))


def test_f1_by_precision_and_recall(seed):
    rng = np.random.default_rng(seed)
    found, labels = rng.integers(0, 6, 200), rng.integers(0, 6, 200)
    expected = []
    for label in range(7):
        right = np.sum((found == label) & (labels == label))
        precision, recall = right / max(np.sum(found == label), 1), right / max(np.sum(labels == label), 1)
        expected.append(2 * precision * recall / (precision + recall) if right else 0.0)
    assert f1_scores(torch.from_numpy(found), torch.from_numpy(labels), 7).tolist() == pytest.approx(expected)


def test_answers_of_classes_that_the_split_lacks_are_wrong():
    assert f1_scores(torch.tensor([0, 8]), torch.tensor([0, 1]), 2).tolist() == [1.0, 0.0]


def test_gains_are_sorted_and_counted(tmp_path):
    labels = [0, 0, 1, 1, 2, 2]
    mine = {"x": answered([0, 0, 1, 0, 2, 2], labels), "y": answered([0], [0])}
    other = {"x": answered([0, 1, 1, 1, 2, 2], labels), "z": answered([0], [0])}
    found = gains(mine, other)
    assert [gain.label for gain in found] == ["ape", "cow", "bee"]
    assert [gain.difference for gain in found] == pytest.approx([4 / 5 - 2 / 3, 0, 2 / 3 - 4 / 5])
    assert counts(found) == {"x": {"better": 1, "worse": 1, "equal": 1}}
    text = table(found, "runs/b")
    assert "x/ape" in text and "+13.33" in text and text.endswith("x: 1 better, 1 worse, 1 equal")
    record = json.loads(write_gains(tmp_path, found, "runs/b").read_text())
    assert record["against"] == "runs/b" and record["classes"][0]["difference"] == pytest.approx(2 / 15)


def test_runs_that_cannot_be_compared_are_one_line():
    mine = {"x": answered([0, 1], [0, 1])}
    with pytest.raises(ValueError, match="share no data set; they have x and y"):
        gains(mine, {"y": answered([0, 1], [0, 1])})
    for other in (answered([0, 1], [1, 0]), answered([0, 1], [0, 1], ["ape", "bee", "cat"])):
        with pytest.raises(ValueError, match="other val samples of x"):
            gains(mine, {"x": other})


def test_accuracy_of_each_data_set_and_their_mean():
    found = {"x": answered([0, 1, 2, 0], [0, 1, 1, 0]), "y": answered([0], [1])}
    assert accuracies(found) == {"top1/x": 0.75, "top1/y": 0.0, "top1": 0.375}
    assert accuracies({"data": found["x"]}) == {"top1": 0.75}
