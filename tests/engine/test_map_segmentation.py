"""Scores of maps, and an Omnivore segmenter on files: trained, resumed, scored and drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from omnitrunk.engine.check import check
from omnitrunk.engine.data import evaluation_batches
from omnitrunk.engine.description import check_description
from omnitrunk.engine.drawing.maps import BLANK, maps_panel
from omnitrunk.engine.evaluate import evaluate, table
from omnitrunk.engine.evaluation.map_overlap import count_pixels, map_scores
from omnitrunk.engine.restore import restore
from omnitrunk.engine.train import train
from omnitrunk.engine.weights import start_from
from omnitrunk.models import SYSTEMS, build_model
from tests.engine.data_files import write_folder
from tests.engine.test_stages import same_when_interrupted, stage
from tests.engine.tiny import needs_dali


def slow_scores(found, truth, classes, ignored):
    """Class by class, in sets of pixels."""
    shares, right, labelled = {}, 0, 0
    for number in range(classes):
        both = either = 0
        for answer, true in zip(found.flatten().tolist(), truth.flatten().tolist(), strict=True):
            if true != ignored:
                both += answer == number and true == number
                either += number in (answer, true)
                labelled += number == 0
                right += number == 0 and answer == true
        if either:
            shares[f"iou/{number}"] = both / either
    return {"miou": np.mean(list(shares.values())), "pixel_accuracy": right / labelled, **shares}


def test_scores_are_those_of_counting_by_hand(seed):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, 4, (3, 5, 6), generator=generator)
    truth = torch.randint(0, 5, (3, 5, 6), generator=generator).to(torch.uint8)
    truth[torch.rand(truth.shape, generator=generator) < 0.3] = 255
    counts = count_pixels(found, truth, 6, 255)
    scores = map_scores(counts)
    assert counts.shape == (3, 3, 6) and "iou/5" not in scores
    assert scores == pytest.approx(slow_scores(found, truth, 6, 255))
    parts = torch.cat([count_pixels(found[rows], truth[rows], 6, 255) for rows in (slice(0, 1), slice(1, 3))])
    assert torch.equal(parts, counts)


def test_a_known_case():
    truth = torch.tensor([[[0, 0, 1, 255]]])
    scores = map_scores(count_pixels(torch.tensor([[[0, 1, 1, 1]]]), truth, 3, 255), ["wall", "floor", "cube"])
    assert scores == {"miou": 0.5, "pixel_accuracy": pytest.approx(2 / 3), "iou/wall": 0.5, "iou/floor": 0.5}


def test_pictures_without_labels_have_no_score():
    nothing = torch.full((1, 2, 2), 255)
    assert map_scores(count_pixels(torch.zeros(1, 2, 2), nothing, 2, 255)) == {"miou": 0, "pixel_accuracy": 0}


def test_the_panel_shows_picture_depth_and_both_maps(seed):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.tensor([[[0, 2], [255, 1]]], dtype=torch.uint8)
    tensors = {
        "rgb": torch.randint(0, 256, (1, 8, 8, 3), generator=generator).to(torch.uint8),
        "depth": torch.rand(1, 8, 8, 1, generator=generator),
    }
    panel = maps_panel(tensors, truth.long().clamp(max=2), truth, 255)
    assert list(panel.pictures) == ["input", "depth", "prediction", "target"]
    assert panel.classes == (0, 1, 2) and panel.scale == "depth"
    found, true = panel.pictures["prediction"][0], panel.pictures["target"][0]
    assert (true[1, 0] == BLANK).all() and (found[1, 0] == found[0, 1]).all() and (found[0] == true[0]).all()
    assert np.array_equal(panel.pictures["input"], tensors["rgb"].numpy())
    assert "depth" not in maps_panel({"rgb": tensors["rgb"]}, truth, truth, 255).pictures


ENCODER = {
    "system": "omnivore", "width": 16, "depths": [1, 1, 1], "heads": [2, 2, 4], "window": [2, 3, 3], "image_size": 32,
    "image_sets": {}, "rgbd_sets": {"rgbd": 10},
}  # fmt: skip
SEGMENTER = {"system": "omnivore_segmenter", "classes": 8, "head_width": 8, "pools": [1, 2], "encoder": ENCODER}


@pytest.fixture
def on_files(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for split, count in (("train", 8), ("val", 10)):
        write_folder(tmp_path / "data", split, count, rng)
    return stage(
        tmp_path / "run",
        SEGMENTER,
        data={"source": "folder", "root": str(tmp_path / "data"), "crop_area": [0.5, 1.0]},
        evaluate={"every": 3},
        log={"every": 2, "tensorboard": False, "images_every": 6},
    )


@needs_dali
def test_a_run_on_files_is_scored_and_drawn(on_files, tmp_path):
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"semseg_classes": 8, "semseg_names": ["wall"]}))
    assert train(on_files) == 0
    scores = json.loads((tmp_path / "run" / "latest" / "evaluation.json").read_text())
    found = {name: score for name, score in scores.items() if name.startswith("iou/")}
    assert "iou/wall" in found and set(found) <= {"iou/wall", *(f"iou/{number}" for number in range(1, 8))}
    assert scores["miou"] == pytest.approx(np.mean(list(found.values())))
    lines = (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()
    logged = [set(json.loads(line)) - {"time"} for line in lines]
    assert logged == [{"step", "miou", "pixel_accuracy"}] * 2
    assert list((tmp_path / "run" / "samples").iterdir())
    words = table({"miou": 0.25, "pixel_accuracy": 0.5, "iou/wall": 0.75}, on_files)
    assert words.splitlines()[0] == "IoU of classes of pixels from rgb, depth"
    assert "mean over classes     25.00%" in words and "wall                  75.00%" in words


@needs_dali
def test_scores_on_files_are_those_of_the_whole_split_at_once(on_files, seed):
    model = build_model(on_files.model, seed)
    data = on_files.data
    batches = evaluation_batches(data, data.val_split, on_files.model.reads, 10)
    (batch,) = batches
    batches.close()
    with torch.no_grad():
        found = model.segment(batch.inputs)
    expected = map_scores(count_pixels(found, batch.tensors["semseg"], 8, 255))
    assert evaluate(on_files, model, torch.device("cpu")) == pytest.approx(expected)


def test_it_starts_from_an_omnivore_and_resumes_exactly(tmp_path, monkeypatch):
    joint = {**ENCODER, "video_sets": {}, "image_size": 32}
    assert train(stage(tmp_path / "omnivore", joint, steps=2)) == 0
    run = {"steps": 6, "weights": str(tmp_path / "omnivore")}
    parts = [
        stage(tmp_path / name, SEGMENTER, run={"folder": str(tmp_path / name), **run}) for name in ("whole", "cut")
    ]
    same_when_interrupted(monkeypatch, *parts)
    model, source = build_model(parts[0].model, 3), restore(tmp_path / "omnivore").model.state_dict()
    said = start_from(model, tmp_path / "omnivore")
    assert "heads.rgbd" in said and "(head)" in said
    state = model.state_dict()
    shared = [name for name in state if not name.startswith("head.")]
    assert len(shared) > 20 and all(torch.equal(state[name], source[name]) for name in shared)


def test_without_depth_it_starts_from_an_omnivore_with_depth(tmp_path):
    assert train(stage(tmp_path / "omnivore", ENCODER, steps=1)) == 0
    flat = {**SEGMENTER, "encoder": {**ENCODER, "image_sets": {"image": 2}, "rgbd_sets": {}}}
    config = stage(tmp_path / "run", flat, run={"folder": str(tmp_path / "run"), "weights": str(tmp_path / "omnivore")})
    assert config.model.reads == ("rgb", "semseg") and train(config) == 0


def test_classes_of_the_data_set_must_be_known(on_files, tmp_path):
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"semseg_classes": 14}))
    with pytest.raises(ValueError, match=r"has class ids up to 13: set model.classes = 14, not 8"):
        check_description(on_files)


def test_the_check_knows_its_size(on_files):
    text = check(on_files)
    assert "omnivore_segmenter" in text and "rgb depth -> semseg" in text and "activations" in text


def test_it_has_no_release(on_files):
    with pytest.raises(ValueError, match="no release holds an omnivore_segmenter: convert the omnivore it starts from"):
        SYSTEMS["omnivore_segmenter"].layout(on_files.model)
