from __future__ import annotations

import math

import pytest
import torch

from omnitrunk.engine.evaluation.knn import knn_accuracy


def brute_force(train, labels, val, truth, neighbors, worth):
    """One query at a time, votes added by hand; `worth` of a class by the similarities of its neighbors."""
    right = 0
    for query, answer in zip(val.double(), truth.tolist(), strict=True):
        similarity = [float(query @ other / query.norm() / other.norm()) for other in train.double()]
        nearest = sorted(range(len(train)), key=lambda i: -similarity[i])[:neighbors]
        classes = {int(labels[i]) for i in nearest}
        votes = {c: [similarity[i] for i in nearest if labels[i] == c] for c in classes}
        right += max(classes, key=lambda c: worth(votes[c])) == answer
    return right / len(val)


WORTH = {
    "count": lambda similarities: (len(similarities), sum(similarities)),
    "weighted": lambda similarities: sum(math.exp(similarity / 0.07) for similarity in similarities),
}


@pytest.mark.parametrize("vote", WORTH)
@pytest.mark.parametrize("neighbors", [1, 2, 4, 7])
def test_against_brute_force(seed, neighbors, vote):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(5, 8, generator=generator)
    train_labels, val_labels = (torch.randint(0, 5, (count,), generator=generator) for count in (60, 1100))
    train, val = (
        centers[labels] + 1.5 * torch.randn(len(labels), 8, generator=generator)
        for labels in (train_labels, val_labels)
    )
    found = knn_accuracy(train, train_labels, val, val_labels, neighbors, vote)
    expected = brute_force(train, train_labels, val, val_labels, neighbors, WORTH[vote])
    assert found == pytest.approx(expected, abs=2 / 1100)
    assert 0.2 < found < 1  # neither chance nor trivial, or the comparison says little


def test_votes_count_before_similarity_and_similarity_breaks_ties():
    angles = torch.tensor([0.0, 1.2, -1.2, 1.3])  # cosines 1.0, 0.36, 0.36, 0.27
    train, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 1, 1, 0])
    for neighbors, winner in ((1, 0), (3, 1), (4, 0)):
        assert knn_accuracy(train, labels, torch.tensor([[2.0, 0.0]]), torch.tensor([winner]), neighbors) == 1.0


def test_weighted_votes_of_two_lose_against_one_that_is_much_nearer():
    angles = torch.tensor([0.0, 1.2, -1.2])
    train, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 1, 1])
    for vote, winner in (("count", 1), ("weighted", 0)):
        assert knn_accuracy(train, labels, torch.tensor([[2.0, 0.0]]), torch.tensor([winner]), 3, vote) == 1.0


def test_more_neighbors_than_samples_is_refused():
    with pytest.raises(ValueError, match=r"evaluate\.neighbors = 9 is more than the 4 samples"):
        knn_accuracy(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), torch.ones(1, 2), torch.zeros(1), 9)
