from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omnitrunk.engine.data import Batch, evaluation_batches
from omnitrunk.engine.evaluate import evaluate, model_features, probe, raw_features, table, write_scores
from omnitrunk.engine.knn import knn_accuracy
from omnitrunk.models import MAEConfig, MaskedAutoencoder, MultiMAE
from tests.engine.data_files import encode
from tests.engine.tiny import needs_dali, tiny

CPU = torch.device("cpu")


def brute_force(train, labels, val, truth, neighbors):
    """One query at a time, votes counted by hand, ties by the sum of similarities."""
    right = 0
    for query, answer in zip(val.double(), truth.tolist(), strict=True):
        similarity = [float(query @ other / query.norm() / other.norm()) for other in train.double()]
        nearest = sorted(range(len(train)), key=lambda i: -similarity[i])[:neighbors]
        classes = {int(labels[i]) for i in nearest}
        votes = {c: [similarity[i] for i in nearest if labels[i] == c] for c in classes}
        right += max(classes, key=lambda c: (len(votes[c]), sum(votes[c]))) == answer
    return right / len(val)


@pytest.mark.parametrize("neighbors", [1, 2, 4, 7])
def test_against_brute_force(seed, neighbors):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(5, 8, generator=generator)
    train_labels, val_labels = (torch.randint(0, 5, (count,), generator=generator) for count in (60, 1100))
    train, val = (
        centers[labels] + 1.5 * torch.randn(len(labels), 8, generator=generator)
        for labels in (train_labels, val_labels)
    )
    found = knn_accuracy(train, train_labels, val, val_labels, neighbors)
    assert found == pytest.approx(brute_force(train, train_labels, val, val_labels, neighbors), abs=2 / 1100)
    assert 0.2 < found < 1  # neither chance nor trivial, or the comparison says little


def test_votes_count_before_similarity_and_similarity_breaks_ties():
    angles = torch.tensor([0.0, 1.2, -1.2, 1.3])  # cosines 1.0, 0.36, 0.36, 0.27
    train, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 1, 1, 0])
    for neighbors, winner in ((1, 0), (3, 1), (4, 0)):
        assert knn_accuracy(train, labels, torch.tensor([[2.0, 0.0]]), torch.tensor([winner]), neighbors) == 1.0


def test_more_neighbors_than_samples_is_refused():
    with pytest.raises(ValueError, match=r"evaluate\.neighbors = 9 is more than the 4 samples"):
        knn_accuracy(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), torch.ones(1, 2), torch.zeros(1), 9)


def write_colors(root, split, count, rng):
    """Two classes told apart by their color: any feature of the pixels separates them."""
    for i in range(count):
        folder = Path(root, split, "rgb", ("blue", "red")[i % 2])
        folder.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 80, (40, 40, 3), dtype=np.uint8)
        picture[..., 2 * (1 - i % 2)] += 150
        (folder / f"{i:03d}.png").write_bytes(encode(picture))


@pytest.fixture
def colors(tmp_path, seed):
    rng = np.random.default_rng(seed)
    write_colors(tmp_path / "data", "train", 70, rng)
    write_colors(tmp_path / "data", "val", 10, rng)
    return tiny(
        tmp_path / "run",
        run={"seed": seed},
        data={"source": "folder", "root": str(tmp_path / "data")},
        model={"inputs": ["rgb"], "outputs": ["rgb"], "keep": 4},
    )


@needs_dali
def test_three_spaces_are_compared_and_written_next_to_the_checkpoint(colors, tmp_path):
    scores = evaluate(colors, MultiMAE(colors.model, 1), CPU)
    assert list(scores) == ["trained", "random", "raw"] and scores["raw"] == 1.0
    text = table(scores, colors)
    assert "5-nearest-neighbor" in text and text.endswith("raw input            100.00%")
    record = json.loads(write_scores(tmp_path, scores, colors).read_text())
    assert record["knn"] == scores and record["neighbors"] == 5


@needs_dali
def test_tokens_side_by_side_keep_their_places(colors):
    model = MultiMAE(colors.model, 1)
    batch = next(evaluation_batches(colors.data, "val", ("rgb",), 4, device=CPU))
    mean, tokens = (model_features(model, "rgb", CPU, "fp32", pool)(batch) for pool in ("mean", "tokens"))
    torch.testing.assert_close(tokens.unflatten(1, (-1, mean.shape[1])).mean(dim=1), mean)
    config = replace(colors, evaluate=replace(colors.evaluate, pool="tokens"))
    expected = probe(config, {"tokens": model_features(model, "rgb", CPU, "fp32", "tokens")}, CPU)["tokens"]
    assert evaluate(config, model, CPU)["trained"] == expected
    with pytest.raises(ValueError, match="must be mean or tokens"):
        replace(colors.evaluate, pool="max")


def test_tokens_side_by_side_come_before_the_final_norm(seed):
    config = MAEConfig(image_size=32, width=16, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2)
    model = MaskedAutoencoder(config, seed)
    torch.nn.init.uniform_(model.norm.weight)
    tensors = {"rgb": torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)}
    batch = Batch(tensors=tensors, labels=torch.zeros(2), positions=np.arange(2))
    tokens = model_features(model, "rgb", CPU, "fp32", "tokens")(batch)
    normed = model.norm(tokens.view(2, -1, 16)).detach()
    torch.testing.assert_close(normed, model.encode(tensors).detach())


@needs_dali
def test_the_model_is_scored_by_its_own_features(colors):
    """A model that maps every picture to one point cannot beat the vote of whatever comes first."""
    model = MultiMAE(colors.model, 1)
    features = model_features(model, "rgb", CPU, "fp32")
    scores = probe(colors, {"as it is": features, "one point": lambda batch: 0 * features(batch) + 1}, CPU)
    assert scores["one point"] == 0.5
    assert scores["as it is"] > 0.5


def test_pixels_of_floats_are_taken_as_they_are(colors):
    class Float:
        tensors = {"depth": torch.full((2, 3, 3, 1), 0.75)}  # noqa: RUF012

    assert torch.equal(raw_features("depth")(Float()), torch.full((2, 9), 0.25))


@needs_dali
def test_another_classes_folder_in_val_is_refused(colors):
    (Path(colors.data.root) / "val" / "rgb" / "green").mkdir()
    with pytest.raises(ValueError, match="differ in classes"):
        probe(replace(colors), {"raw": raw_features("rgb")}, CPU)
