from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from omnitrunk.engine import cli
from omnitrunk.engine.data import evaluation_batches
from omnitrunk.engine.drawing.show import draw_sheet
from omnitrunk.engine.evaluate import EvaluateConfig, check_evaluation, evaluate, evaluate_briefly, table, write_scores
from omnitrunk.engine.evaluation.features import model_features, raw_features
from omnitrunk.engine.evaluation.retrieval import read_sides
from omnitrunk.engine.evaluation.samples import find_data
from omnitrunk.engine.idle import without_effect
from omnitrunk.engine.train import train
from omnitrunk.models import MAEConfig, build_model
from tests.engine.omnivore_files import joint, scenes
from tests.engine.tiny import needs_dali

CPU = torch.device("cpu")
PAIRS = ["depth->rgb", "video->rgb", "rgbd->rgb", "rgb->video"]


@pytest.fixture
def config(tmp_path, seed):
    return joint(tmp_path / "run", scenes(tmp_path, seed), evaluate={"retrieval": PAIRS, "neighbors": 3})


@needs_dali
def test_every_data_set_has_its_accuracy_and_every_pair_its_figures(config, tmp_path):
    model = build_model(config.model, 1)
    scores = evaluate(config, model, CPU)
    named = [scores[f"top1/{name}"] for name in ("pictures", "clips", "views")]
    assert scores["top1"] == pytest.approx(sum(named) / 3) and "trained" not in scores
    batch = next(evaluation_batches(config.data, "val", ("rgb", "depth"), 8, device=CPU))
    with torch.no_grad():
        found = model.logits(batch.tensors, "views").argmax(dim=1)
    assert scores["top1/views"] == (found == batch.labels).double().mean()
    for pair in PAIRS:
        assert scores[f"{pair}/recall@1/chance"] == 0.25 and 1 <= scores[f"{pair}/mean rank"] <= 4
        assert f"{pair}/class mAP/untrained" in scores and f"{pair}/recall@1/chance/untrained" not in scores
    text = table(scores, config)
    assert "mean over data sets" in text and "video->rgb" in text and "nearest-neighbor" not in text
    record = json.loads(write_scores(tmp_path, scores, config).read_text())
    assert set(record["data"]) == {"pictures", "clips", "views"} and record["top1/clips"] == scores["top1/clips"]
    brief = evaluate_briefly(config, model, CPU)
    assert brief == {name: scores[name] for name in brief} and all(0 <= score <= 1 for score in brief.values())
    assert {"top1", "top1/clips", "depth->rgb/recall@1", "rgb->video/class@1"} < set(brief)
    assert not [name for name in brief if "rank" in name or "chance" in name or "untrained" in name]


@needs_dali
def test_a_model_that_sees_the_same_in_both_modalities_finds_every_sample(config):
    """Its features are the number of the sample: the pairing by class and stem is all that is tested."""
    model = build_model(config.model, 1)
    model.features = lambda tensors, tasks: torch.eye(4)
    sides = read_sides(config, {"": model}, CPU)[""]
    assert set(sides) == {"rgb", "depth", "video", "rgbd"}
    expected = ["class0/0000", "class0/0001", "class1/0002", "class1/0003"]
    assert all(side.samples.tolist() == expected for side in sides.values())
    scores = evaluate(config, model, CPU)
    assert {scores[f"{pair}/recall@1"] for pair in PAIRS} == {scores[f"{pair}/mean rank"] for pair in PAIRS} == {1.0}


@needs_dali
@pytest.mark.parametrize("modality", ["rgb", "video", "depth", "rgbd"])
def test_the_probe_of_a_joint_model_is_of_the_modality_that_is_named(config, modality, tmp_path):
    config = replace(config, evaluate=EvaluateConfig(modality=modality, neighbors=3, vote="weighted", stage=0))
    model = build_model(config.model, 1)
    scores = evaluate(config, model, CPU)
    assert {"trained", "random", "raw", "top1/clips"} <= set(scores)
    assert evaluate_briefly(config, model, CPU)["knn"] == scores["trained"]
    assert f"3-nearest-neighbor accuracy from {modality}" in table(scores, config)
    record = json.loads(write_scores(tmp_path, scores, config).read_text())
    assert (record["modality"], record["vote"], record["stage"]) == (modality, "weighted", 0)


def test_a_modality_is_read_from_the_data_set_that_has_little_else(config):
    other = replace(config.mixture, sets={**config.mixture.sets, "views": {"root": "elsewhere"}})
    config = replace(config, mixture=other)
    for name, modalities in (
        ("rgb", ("rgb",)),
        ("depth", ("depth",)),
        ("rgbd", ("rgb", "depth")),
        ("video", ("video",)),
    ):
        data, found = find_data(config, name)
        assert found == modalities and (data.root == "elsewhere") == ("depth" in modalities)
    with pytest.raises(ValueError, match="'audio', which this model takes from no data set; use rgb or video or depth"):
        find_data(config, "audio")


@needs_dali
def test_features_of_a_stage_are_the_mean_of_its_map(config):
    model = build_model(config.model, 1)
    batch = next(evaluation_batches(config.data, "val", ("video",), 4, device=CPU))

    def features(**options):
        return model_features(model, ("video",), CPU, "fp32", EvaluateConfig(**options))(batch)

    with torch.no_grad():
        first, last = (model.features(batch.tensors, ("video",), stage=stage) for stage in (0, 1))
        torch.testing.assert_close(features(stage=0), first.mean(dim=(1, 2, 3)))
        torch.testing.assert_close(features(stage=0, pool="tokens"), first.flatten(1))
        torch.testing.assert_close(features(pool="tokens"), last.flatten(1))
        torch.testing.assert_close(features(), model.features(batch.tensors, ("video",)))
        assert not torch.allclose(features(), last.mean(dim=(1, 2, 3)))


@needs_dali
def test_features_of_several_views_are_their_mean(config):
    data = replace(config.data, frames=2, views=3)
    batch = next(evaluation_batches(data, "val", ("video",), 4, device=CPU))
    assert len(batch.tensors["video"]) == 12
    expected = batch.tensors["video"].view(4, 3, -1).float().mean(dim=1) / 255 - 0.5
    torch.testing.assert_close(raw_features(("video",))(batch), expected)


def test_stages_are_refused_where_there_are_none(config):
    model = build_model(config.model, 1)
    with pytest.raises(ValueError, match=r"evaluate\.stage = 2: this model has the stages 0 to 1; use -1"):
        model_features(model, ("rgb",), CPU, "fp32", EvaluateConfig(stage=2))
    plain = MAEConfig(image_size=32, width=16, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2)
    with pytest.raises(ValueError, match=r"evaluate\.stage = 0: this model has no stages; use -1"):
        model_features(build_model(plain, 1), ("rgb",), CPU, "fp32", EvaluateConfig(stage=0))


@pytest.mark.parametrize("pair", ["rgb", "->rgb", "rgb->", "rgb->rgb"])
def test_a_pair_names_two_modalities(pair):
    with pytest.raises(ValueError, match=r'evaluate\.retrieval has .*: name two modalities, such as "depth->rgb"'):
        EvaluateConfig(retrieval=(pair,))


def test_mistakes_show_before_a_run(config):
    every = replace(config, evaluate=replace(config.evaluate, every=1))
    check_evaluation(every)
    for changes, message in (
        ({"retrieval": ("depth->audio",)}, "'audio', which this model takes from no data set"),
        ({"stage": 3}, "stages 0 to 1"),
        ({"modality": "video", "neighbors": 9}, "is more than the 6 training samples"),
    ):
        with pytest.raises(ValueError, match=message):
            check_evaluation(replace(every, evaluate=replace(every.evaluate, **changes)))
    noise = replace(config, data=replace(config.data, source="random"), log=replace(config.log, images_every=1))
    with pytest.raises(ValueError, match=r"log\.images_every needs a data set"):
        check_evaluation(noise)


def test_options_of_a_probe_that_is_not_made_are_named(config):
    found = without_effect(replace(config, evaluate=EvaluateConfig(neighbors=3, vote="weighted", stage=1)))
    assert {line.partition(" ")[0] for line in found} >= {"evaluate.neighbors", "evaluate.vote", "evaluate.stage"}
    probed = EvaluateConfig(neighbors=3, modality="rgb", vote="weighted", stage=1)
    assert not [line for line in without_effect(replace(config, evaluate=probed)) if "evaluate" in line]


@needs_dali
def test_the_sheet_has_a_block_for_each_pair(config):
    model = build_model(config.model, 1)
    one = replace(config, evaluate=EvaluateConfig(retrieval=("depth->rgb",)))
    few, more = (draw_sheet(one, model, CPU, samples=samples) for samples in (2, 4))
    assert more.height - few.height == 2 * 116 and np.array_equal(few, draw_sheet(one, model, CPU, samples=2))
    assert draw_sheet(config, model, CPU, samples=2).width > 2 * few.width
    with pytest.raises(ValueError, match=r"name a pair of them, such as evaluate\.retrieval"):
        draw_sheet(replace(config, evaluate=EvaluateConfig()), model, CPU)


@needs_dali
def test_a_run_logs_draws_and_is_measured_by_the_command(config, tmp_path, capsys):
    config = replace(
        config, evaluate=replace(config.evaluate, every=1), log=replace(config.log, images_every=2, every=1)
    )
    assert train(config) == 0
    folder = tmp_path / "run"
    first, last = (json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines())
    assert {"top1", "top1/views", "depth->rgb/recall@1"} < set(first) and set(first) == set(last)
    assert (folder / "samples" / "step-00000002.png").stat().st_size > 1000
    assert "by chance" in capsys.readouterr().out
    assert cli.main(["eval", str(folder), "--clip-lengths", "1", "4", "--data.threads", "2"]) == cli.DONE
    assert "accuracy by clip length" in capsys.readouterr().out
    assert cli.main(["eval", str(folder), "--against", str(folder)]) == cli.DONE
    assert "0 better, 0 worse, 2 equal" in capsys.readouterr().out
    for name in ("evaluation.json", "clip_lengths.json", "gains.json"):
        assert (folder / "latest" / name).exists()
    assert cli.main(["show", str(folder), "-o", str(tmp_path / "sheet.png"), "--samples", "2"]) == cli.DONE
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
