from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from omnitrunk.engine.data import Batch
from omnitrunk.engine.evaluation import answers as answers_module
from omnitrunk.engine.evaluation.clip_lengths import clip_length_curve, table, write_curve
from omnitrunk.models import build_model
from tests.engine.omnivore_files import joint, scenes
from tests.engine.tiny import needs_dali

CPU = torch.device("cpu")


@needs_dali
def test_shorter_clips_come_with_more_views(tmp_path, seed):
    config = joint(tmp_path / "run", scenes(tmp_path, seed))
    model, shapes = build_model(config.model, seed), []
    compute = model.logits

    def watch(tensors, dataset):
        shapes.append((dataset, tuple(tensors["video"].shape[:2])))
        return compute(tensors, dataset)

    model.logits = watch
    points = clip_length_curve(config, model, CPU, [1, 2, 4, 8])
    assert [(point.frames, point.views) for point in points] == [(1, 4), (2, 2), (4, 1), (8, 1)]
    assert shapes == [("clips", (16, 1)), ("clips", (8, 2)), ("clips", (4, 4)), ("clips", (4, 8))]
    assert {point.frame_stride for point in points} == {2}
    record = json.loads(write_curve(tmp_path, points).read_text())
    assert [row["top1"] for row in record] == [point.top1 for point in points] and record[0]["dataset"] == "clips"
    assert len(table(points).splitlines()) == 2 + len(points)


@needs_dali
def test_logits_are_averaged_over_views_before_the_answer(tmp_path, seed, monkeypatch):
    """Two views that are unsure of the wrong class lose against one that is sure of the right one."""
    config = joint(tmp_path / "run", scenes(tmp_path, seed))
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 9.0]]).repeat(4, 1)
    batch = Batch(tensors={"video": torch.zeros(12, 1, 8, 8, 3)}, labels=torch.ones(4).long(), positions=range(4))
    model = build_model(config.model, seed)
    model.logits = lambda tensors, dataset: logits
    monkeypatch.setattr("omnitrunk.engine.evaluation.samples.batches_of", lambda *_: [batch])
    sets = answers_module.data_sets(config)
    found = answers_module.answers(config, model, CPU, {"clips": sets["clips"]})["clips"]
    assert found.found.tolist() == [1] * 4 and found.accuracy == 1.0


def test_what_has_no_curve_is_one_line(tmp_path, seed):
    config = joint(tmp_path / "run", tmp_path)
    model = build_model(config.model, seed)
    with pytest.raises(ValueError, match="--clip-lengths 0: a clip has 1 frame or more"):
        clip_length_curve(config, model, CPU, [4, 0])
    segments = replace(config, data=replace(config.data, frame_sampling="segments"))
    with pytest.raises(ValueError, match=r'set mixture\.sets\.clips\.frame_sampling = "stride"'):
        clip_length_curve(segments, model, CPU, [4])
    pictures = joint(tmp_path / "run", tmp_path, {"video_sets": {}, "rgbd_sets": {}}, mixture={"sets": {}})
    with pytest.raises(ValueError, match="needs an Omnivore that has data sets of clips"):
        clip_length_curve(pictures, build_model(pictures.model, seed), CPU, [4])
