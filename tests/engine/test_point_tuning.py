"""A Point-MAE, pre-trained, then fine-tuned both ways: runs start from it, resume exactly, are scored and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from omnitrunk.engine.check import check
from omnitrunk.engine.config import read
from omnitrunk.engine.data import evaluation_batches
from omnitrunk.engine.description import check_description
from omnitrunk.engine.drawing.clouds import PAPER, parts_panel
from omnitrunk.engine.drawing.show import draw_sheet
from omnitrunk.engine.estimate import activation_values
from omnitrunk.engine.evaluate import evaluate, table, write_scores
from omnitrunk.engine.restore import restore
from omnitrunk.engine.train import train
from omnitrunk.models import build_model
from tests.engine.data_files import encode_array
from tests.engine.test_stages import MODELS, same_when_interrupted, stage

CPU = torch.device("cpu")
CLASSIFIER = {"system": "point_classifier", "encoder": MODELS["pointmae"], "classes": 8}
SEGMENTER = {
    "system": "part_segmenter", "encoder": {**MODELS["pointmae"], "depth": 3}, "part_counts": [2, 1, 2, 1, 1, 1, 1, 1],
    "taps": [1, 2, 3], "point_width": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    root = tmp_path_factory.mktemp("pretrained")
    for depth in (2, 3):
        assert train(stage(root / str(depth), {**MODELS["pointmae"], "depth": depth}, steps=3)) == 0
    return root


def tuned(folder, model, pretrained, **sections):
    parts = {"parts": 10} if model["system"] == "part_segmenter" else {}
    run = {"folder": str(folder), "steps": 6, "weights": str(pretrained / str(model["encoder"]["depth"]))}
    return stage(folder, model, run=run, data=parts, **sections)


@pytest.mark.parametrize("model", [CLASSIFIER, SEGMENTER], ids=["classifier", "segmenter"])
def test_fine_tuning_resumes_exactly_dropout_included(model, pretrained, tmp_path, monkeypatch):
    same_when_interrupted(
        monkeypatch, tuned(tmp_path / "whole", model, pretrained), tuned(tmp_path / "cut", model, pretrained)
    )


def test_pathways_are_joined_and_learn(pretrained, tmp_path):
    joined = {"pathway": {"auxiliaries": [str(pretrained / "3")]}}
    assert train(tuned(tmp_path / "run", SEGMENTER, pretrained, **joined)) == 0
    scales = [p for name, p in restore(tmp_path / "run").model.named_parameters() if ".pathway.scales." in name]
    assert len(scales) == 12 and all(scale.abs().item() > 0 for scale in scales)


def write_labeled(root, rng, count=12):
    """Two classes of clouds; parts are halves along an axis, numbered on from class to class."""
    for split in ("train", "val"):
        for i in range(count):
            folder = Path(root, split, "points", ("lamp", "table")[i % 2])
            folder.mkdir(parents=True, exist_ok=True)
            points = rng.normal(size=(80, 3))
            part = 2 * (i % 2) + (points[:, i % 2] > 0)
            (folder / f"{i:03d}.npy").write_bytes(encode_array(np.column_stack([points, part])))


@pytest.fixture
def labeled(tmp_path, seed):
    write_labeled(tmp_path / "data", np.random.default_rng(seed))
    values = {
        "run": {"folder": str(tmp_path / "run"), "steps": 2},
        "data": {"root": str(tmp_path / "data"), "batch": 4, "points": 64, "parts": 4, "threads": 1},
        "model": {**SEGMENTER, "part_counts": [2, 2]},
        "log": {"tensorboard": False, "images_every": 2},
        "evaluate": {"every": 1},
    }
    return read(values)


def test_a_segmenter_is_scored_on_files(labeled, tmp_path):
    model = build_model(labeled.model, 1)
    scores = evaluate(labeled, model, CPU)
    assert list(scores) == ["instance_miou", "class_miou", "miou/lamp", "miou/table"]
    assert 0 < scores["instance_miou"] < 0.8 and scores["class_miou"] == pytest.approx(
        (scores["miou/lamp"] + scores["miou/table"]) / 2
    )
    model.segment = lambda inputs: inputs["parts"]
    assert set(evaluate(labeled, model, CPU).values()) == {1.0}
    text = table(scores, labeled)
    assert "mean IoU of parts from points" in text and "mean over classes" in text and "lamp" in text
    assert json.loads(write_scores(tmp_path, scores, labeled).read_text())["class_miou"] == scores["class_miou"]


def test_a_run_logs_both_means_and_draws_parts(labeled, capsys):
    assert train(labeled) == 0
    lines = (Path(labeled.run.folder) / "evaluation.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"step", "instance_miou", "class_miou"}] * 2
    assert (Path(labeled.run.folder) / "samples" / "step-00000002.png").stat().st_size > 1000
    assert "mean over shapes" in capsys.readouterr().out


def test_the_sheet_shows_parts_in_colors_of_their_own(labeled):
    sheet = np.asarray(draw_sheet(labeled, build_model(labeled.model, 1), CPU, samples=3))
    assert sheet.shape[0] > 3 * 100
    batch = next(iter(evaluation_batches(labeled.data, "val", ("points",), 2)))
    first = 2 * batch.labels
    panel = parts_panel(batch.tensors["points"], batch.tensors["parts"], batch.tensors["parts"], first)
    assert panel.classes == (1, 2) and np.array_equal(panel.pictures["prediction"], panel.pictures["target"])
    drawn = panel.pictures["target"].reshape(-1, 3)
    assert len(np.unique(drawn[(drawn != PAPER).any(axis=1)], axis=0)) == 2
    foreign = parts_panel(batch.tensors["points"], 0 * batch.tensors["parts"] - 9, batch.tensors["parts"], first)
    assert foreign.classes == (0, 1, 2)


def test_a_classifier_is_scored_and_check_knows_both(labeled, tmp_path):
    values = {"data": {"parts": 0}, "model": {**CLASSIFIER, "classes": 2}, "log": {"images_every": 0}}
    base = {"run": {"folder": str(tmp_path / "other")}, "data": {**vars(labeled.data), "parts": 0}}
    config = read({**values, **base, "evaluate": {"every": 1}})
    assert set(evaluate(config, build_model(config.model, 1), CPU)) == {"top1"}
    assert "point_classifier" in check(config) and "part_segmenter" in check(labeled)
    plan = build_model(labeled.model, 0).plan(0, np.arange(2))
    trunk = activation_values(labeled.model, plan) - labeled.model.head_values
    assert trunk == 3 * 8 * 16 * (9 + 2 * 4) and labeled.model.head_values == 64 * (8 * 16 + 4.5 * 16)


def test_parts_that_do_not_fit_are_one_line(labeled, tmp_path):
    with pytest.raises(ValueError, match=r"data\.parts = 3, but the model knows 4 parts: set it to 4"):
        read({"data": {"points": 64, "parts": 3}, "model": {**SEGMENTER, "part_counts": [2, 2]}})
    with pytest.raises(ValueError, match=r"data\.parts = 3, but the model knows 0 parts"):
        read({"data": {"points": 64, "parts": 3}, "model": CLASSIFIER})
    parts = {"lamp": {"shade": 0, "foot": 1}, "table": {"top": 2, "legs": 3, "drawer": 4}}
    (Path(labeled.data.root) / "dataset.json").write_text(json.dumps({"parts": parts}))
    with pytest.raises(ValueError, match=r"have other parts: set model\.part_counts = \[2, 3\]"):
        check_description(labeled)
