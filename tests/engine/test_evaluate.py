from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omnitrunk.engine.data import Batch, evaluation_batches
from omnitrunk.engine.evaluate import EvaluateConfig, check_evaluation, evaluate, table, write_scores
from omnitrunk.engine.evaluation.features import model_features, raw_features
from omnitrunk.engine.evaluation.probe import probe
from omnitrunk.engine.evaluation.samples import collect
from omnitrunk.models import MAEConfig, MaskedAutoencoder, MultiMAE
from tests.engine.data_files import encode, write_folder
from tests.engine.tiny import needs_dali, tiny

CPU = torch.device("cpu")


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
    mean, tokens = (
        model_features(model, ("rgb",), CPU, "fp32", EvaluateConfig(pool=pool))(batch) for pool in ("mean", "tokens")
    )
    torch.testing.assert_close(tokens.unflatten(1, (-1, mean.shape[1])).mean(dim=1), mean)
    config = replace(colors, evaluate=replace(colors.evaluate, pool="tokens"))
    features = model_features(model, ("rgb",), CPU, "fp32", config.evaluate)
    expected = probe(config, {"tokens": features}, CPU)["tokens"]
    assert evaluate(config, model, CPU)["trained"] == expected
    with pytest.raises(ValueError, match="must be mean or tokens"):
        replace(colors.evaluate, pool="max")


def test_tokens_side_by_side_come_before_the_final_norm(seed):
    config = MAEConfig(image_size=32, width=16, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2)
    model = MaskedAutoencoder(config, seed)
    torch.nn.init.uniform_(model.norm.weight)
    tensors = {"rgb": torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)}
    batch = Batch(tensors=tensors, labels=torch.zeros(2), positions=np.arange(2))
    tokens = model_features(model, ("rgb",), CPU, "fp32", EvaluateConfig(pool="tokens"))(batch)
    normed = model.norm(tokens.view(2, -1, 16)).detach()
    torch.testing.assert_close(normed, model.encode(tensors).detach())


@needs_dali
def test_the_model_is_scored_by_its_own_features(colors):
    """A model that maps every picture to one point cannot beat the vote of whatever comes first."""
    model = MultiMAE(colors.model, 1)
    features = model_features(model, ("rgb",), CPU, "fp32", colors.evaluate)
    scores = probe(colors, {"as it is": features, "one point": lambda batch: 0 * features(batch) + 1}, CPU)
    assert scores["one point"] == 0.5
    assert scores["as it is"] > 0.5


def test_pixels_of_floats_are_taken_as_they_are():
    batch = Batch(tensors={"depth": torch.full((2, 3, 3, 1), 0.75)}, labels=torch.zeros(2), positions=np.arange(2))
    assert torch.equal(raw_features(("depth",))(batch), torch.full((2, 9), 0.25))
    assert torch.equal(raw_features(("depth",), depth_center=0.0)(batch), torch.full((2, 9), 0.75))


@needs_dali
def test_another_classes_folder_in_val_is_refused(colors):
    (Path(colors.data.root) / "val" / "rgb" / "green").mkdir()
    with pytest.raises(ValueError, match="differ in classes"):
        probe(replace(colors), {"raw": raw_features(("rgb",))}, CPU)


def test_a_class_that_val_lacks_is_refused_before_the_run_starts(colors):
    config = replace(colors, evaluate=replace(colors.evaluate, every=1))
    check_evaluation(config)
    shutil.rmtree(Path(colors.data.root) / "val" / "rgb" / "red")
    with pytest.raises(
        ValueError, match=r"val and train of .* differ in classes, so labels would not agree: red; give"
    ):
        check_evaluation(config)


@needs_dali
def test_a_split_that_cannot_be_read_is_named_with_its_first_fault(colors):
    for path in Path(colors.data.root, "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no sample of .*val can be read; first: .*000\.png: .*empty"):
        collect(colors.data, "val", ("rgb",), {"raw": raw_features(("rgb",))}, CPU)


def test_a_probe_asks_only_for_what_it_reads(tmp_path, seed):
    """Pre-training may read maps that the val split does not have."""
    rng = np.random.default_rng(seed)
    write_folder(tmp_path, "train", 6, rng)
    for name in ("class0", "class1"):
        (tmp_path / "val" / "rgb" / name).mkdir(parents=True)
        (tmp_path / "val" / "rgb" / name / "a.png").write_bytes(encode(rng.integers(0, 80, (40, 40, 3), np.uint8)))
    config = tiny(
        tmp_path / "run", data={"source": "folder", "root": str(tmp_path)}, evaluate={"every": 1, "neighbors": 6}
    )
    assert set(config.model.reads) == {"rgb", "depth", "semseg"}
    check_evaluation(config)
    with pytest.raises(ValueError, match=r"evaluate\.neighbors = 7 is more than the 6 training samples"):
        check_evaluation(replace(config, evaluate=replace(config.evaluate, neighbors=7)))
    with pytest.raises(ValueError, match="evaluate names 'video', which this model takes from no data set; use rgb or"):
        check_evaluation(replace(config, evaluate=replace(config.evaluate, modality="video")))
