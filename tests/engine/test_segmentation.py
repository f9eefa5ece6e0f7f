from __future__ import annotations

import pytest
import torch

from omnitrunk.engine.evaluation.part_overlap import shape_scores, summary

COUNTS = (2, 4, 1, 3)


def one_by_one(found, truth, labels):
    """Shape by shape, part by part, point by point."""
    scores = []
    for answer, true, label in zip(found.tolist(), truth.tolist(), labels.tolist(), strict=True):
        first, ratios = sum(COUNTS[:label]), []
        for part in range(first, first + COUNTS[label]):
            both = sum(a == part and t == part for a, t in zip(answer, true, strict=True))
            either = sum(a == part or t == part for a, t in zip(answer, true, strict=True))
            ratios.append(both / either if either else 1.0)
        scores.append(sum(ratios) / len(ratios))
    return scores


def shapes(seed, count=30, points=6):
    """Few points, so that some parts are missing on one side or on both; and a few parts of other classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, len(COUNTS), (count,), generator=generator)
    first, sizes = torch.tensor(COUNTS).cumsum(0)[labels] - torch.tensor(COUNTS)[labels], torch.tensor(COUNTS)[labels]
    found, truth = (
        first[:, None] + (torch.rand(count, points, generator=generator) * sizes[:, None]).long() for _ in range(2)
    )
    found[torch.rand(count, points, generator=generator) < 0.1] = 0
    return found, truth, labels


def test_scores_equal_counting_by_hand(seed):
    found, truth, labels = shapes(seed)
    expected = torch.tensor(one_by_one(found, truth, labels), dtype=torch.float64)
    torch.testing.assert_close(shape_scores(found, truth, labels, COUNTS), expected)
    assert 0 < expected.mean() < 1


def test_a_part_that_nobody_sees_counts_as_right_and_perfect_is_one(seed):
    _, truth, labels = shapes(seed)
    assert shape_scores(truth, truth, labels, COUNTS).eq(1).all()
    nothing = shape_scores(torch.tensor([[2, 2, 3]]), torch.tensor([[2, 2, 3]]), torch.tensor([1]), COUNTS)
    assert nothing.tolist() == [1.0]
    wrong = shape_scores(torch.tensor([[3, 3, 3]]), torch.tensor([[2, 2, 2]]), torch.tensor([1]), COUNTS)
    assert wrong.tolist() == [0.5]


def test_means_over_shapes_and_over_classes():
    scores, labels = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0, 0, 2])
    found = summary(scores, labels, ["chair", "lamp", "mug"])
    assert found == pytest.approx({"instance_miou": 0.5, "class_miou": 0.5, "miou/chair": 0.5, "miou/mug": 0.5})
    assert summary(scores[1:], labels[1:], ["chair", "lamp", "mug"])["class_miou"] == 0.25
