"""The pathway experiment trains every arm once, goes on where it stopped, and reports what it measured."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

from omnitrunk.bench import pathways
from omnitrunk.bench.pathway_report import gains, markdown
from omnitrunk.engine.config import load, read
from omnitrunk.engine.train import train
from omnitrunk.engine.world import write_world

SIZES = {"width": 16, "depth": 2, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
MODELS = {
    "rgb": {"system": "mae", "image_size": 32, "patch_size": 8, **SIZES},
    "points": {"system": "pointmae", "points": 64, "groups": 8, "group_size": 4, **SIZES, "decoder_width": 16},
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    root = tmp_path_factory.mktemp("experiment")
    write_world(root / "world", scenes=48, seed=3)
    for name, model in MODELS.items():
        data = {"root": str(root / "world"), "size": 32, "points": 64, "batch": 4, "threads": 1}
        run = {"folder": str(root / name), "steps": 2}
        assert train(read({"run": run, "data": data, "model": model, "log": {"tensorboard": False}})) == 0
    return root


def options(root, *more):
    runs = ["--runs", str(root / "rgb"), str(root / "points")]
    small = ["--seeds", "1", "--steps", "2", "--shots", "1", "--batch", "4"]
    return [str(root / "experiment"), *runs, *small, "--json", str(root / "rows.jsonl"), *more]


def test_every_arm_is_measured_once(pretrained, monkeypatch):
    trained = []
    monkeypatch.setattr(
        pathways, "fine_tune", lambda path, _threads: trained.append(path) or {"top1": 0.5, "train_loss": 1}
    )
    assert pathways.main(options(pretrained)) == 0
    labels = [path.stem for path in trained]
    both = ["alone", "itself", "random"]
    expected = [f"rgb-{name}-0" for name in [*both, "points", "points_reversed"]]
    assert labels == expected + [f"points-{name}-0" for name in [*both, "rgb", "rgb_reversed"]]
    recipe = load(trained[4])
    assert recipe.pathway.order == "reversed" and recipe.pathway.auxiliaries == (str(pretrained / "points"),)
    trained.clear()
    assert pathways.main(options(pretrained, "--seeds", "2")) == 0
    assert len(trained) == 10 and all(path.stem.endswith("-1") for path in trained), (
        "what was measured is not measured again"
    )
    assert len((pretrained / "rows.jsonl").read_text().splitlines()) == 20


def test_an_arm_is_trained_and_evaluated(pretrained):
    configs = pathways.pretrained_runs([pretrained / "rgb", pretrained / "points"])
    parsed = pathways.parser().parse_args(options(pretrained))
    *_, arm = (arm for arm in pathways.arms(configs, parsed.folder, 7) if arm.target == "rgb")
    folder = parsed.folder / pathways.place("rgb", parsed, 1)
    pathways.write_lists(configs["rgb"], folder / "lists", 1)
    path = pathways.recipe(arm, configs["rgb"], folder, parsed)
    found = pathways.fine_tune(path, 1)
    assert 0 <= found["top1"] <= 1 and found["mean_scale"] > 0
    assert pathways.fine_tune(path, 1) == found


def test_lists_hold_so_many_samples_of_each_class(pretrained, tmp_path):
    config = pathways.pretrained_runs([pretrained / "rgb", pretrained / "points"])["rgb"]
    pathways.write_lists(config, tmp_path, 2)
    labels = [line.rsplit(",", 1)[1] for line in (tmp_path / "train.csv").read_text().splitlines()[1:]]
    assert labels and all(labels.count(label) <= 2 for label in labels) and len(set(labels)) == 12


def test_shots_can_differ_between_targets():
    assert pathways.shots_of(["points=3", "10"], ["rgb", "points"]) == {"rgb": 10, "points": 3}
    for word in ("audio=3", "few", "rgb="):
        with pytest.raises(ValueError, match="must be a number or TARGET=N"):
            pathways.shots_of([word], ["rgb", "points"])


def test_runs_of_other_settings_are_other_runs(pretrained):
    parsed = pathways.parser().parse_args(options(pretrained))
    known = {pathways.place("rgb", parsed, 1)}
    for name, value in (("steps", 3), ("batch", 5), ("lr", 0.1)):
        known.add(pathways.place("rgb", argparse.Namespace(**{**vars(parsed), name: value}), 1))
    known.add(pathways.place("rgb", parsed, 2))
    assert len(known) == 5


def test_gains_pair_the_seeds():
    rows = [
        {"target": "rgb", "arm": arm, "seed": seed, "top1": value}
        for arm, values in (("alone", (0.5, 0.7)), ("points", (0.55, 0.72)))
        for seed, value in enumerate(values)
    ]
    found = {"alone": {0: 50.0, 1: 70.0}, "points": {1: 72.0, 0: 55.0}}
    np.testing.assert_allclose(gains(found, "points"), [2.0, 5.0])
    assert "| rgb | points | 63.5 ± 12.0 | +3.5 ± 1.5 | - | 2 |" in markdown(rows)


def test_one_run_or_two_of_a_modality_are_refused(pretrained):
    for runs in (["rgb"], ["rgb", "rgb"]):
        with pytest.raises(ValueError, match="give two runs or more"):
            pathways.pretrained_runs([pretrained / name for name in runs])
