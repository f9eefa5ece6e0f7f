"""The joint experiment trains the mixture and each of its data sets once, and reports the difference seed by seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnitrunk.bench import joint
from omnitrunk.engine.config import dump, load, read
from omnitrunk.engine.datasets import data_sets
from omnitrunk.engine.plans import check_pairs
from omnitrunk.engine.world import write_world


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    root = tmp_path_factory.mktemp("joint")
    write_world(root / "world", scenes=48, seed=3)
    config = read(
        {
            "run": {"folder": str(root / "run"), "steps": 20},
            "data": {"root": str(root / "world"), "size": 16, "frames": 2, "batch": 8, "threads": 1},
            "mixture": {
                "sets": {"image": {"crop_area": [0.5, 1.0]}, "video": {"batch": 4}, "rgbd": {}},
                "repeat": {"rgbd": 2.0},
                "accumulate": {"video": 2},
            },
            "model": {
                "system": "omnivore",
                "image_sets": {"image": 12},
                "video_sets": {"video": 12},
                "rgbd_sets": {"rgbd": 12},
                "head_dropout": {"video": 0.5},
                "rgb_drop": 0.5,
                "image_size": 16,
                "frames": 2,
                "width": 8,
                "depths": [1, 1],
                "heads": [1, 2],
                "window": [1, 2, 2],
            },
            "optimizer": {"warmup_steps": 10},
            "log": {"tensorboard": False},
            "evaluate": {"every": 20, "retrieval": ["depth->rgb"]},
        }
    )
    (root / "recipe.toml").write_text(dump(config))
    return root / "recipe.toml"


def test_alone_a_data_set_has_the_steps_and_fields_that_it_has_in_the_mixture(recipe):
    config = load(recipe)
    steps = joint.steps_of_each(config)
    # 38 scenes to train on: 4, 9 and 2 x 4.75 batches
    assert steps == {
        "image": (round(20 * 4 / 22), 8),
        "video": (round(20 * 9 / 22), 4),
        "rgbd": (round(20 * 9 / 22), 8),
    }
    video = read(joint.alone(config, "video", *steps["video"]))
    assert (video.model.data_sets, video.model.head_dropout, video.model.rgb_drop) == (
        {"video": ("video",)},
        {"video": 0.5},
        0.0,
    )
    assert (video.data.batch, video.optimizer.accumulate, video.optimizer.warmup_steps) == (4, 2, 4)
    assert list(data_sets(video)) == ["video"] and not video.evaluate.retrieval
    image = read(joint.alone(config, "image", *steps["image"]))
    assert image.data.crop_area == (0.5, 1.0) and image.run.steps == 4 and not image.model.head_dropout
    assert read(joint.alone(config, "rgbd", 8, 8)).model.rgb_drop == 0.5


def test_alone_a_data_set_has_steps_as_large_as_mixed_ones(recipe):
    config = load(recipe, ["--mixture.batches", "mixed"])
    # nine steps an epoch, with 4 x 8, 9 x 4 and 9 x 8 samples
    assert joint.steps_of_each(config) == {
        "image": (round(20 * 4 * 8 / 9 / 16), 16),
        "video": (round(20 * 4 / 16), 16),
        "rgbd": (round(20 * 8 / 16), 16),
    }


@pytest.mark.parametrize(("mixup", "batch"), [(0.0, 11), (0.8, 12)])
def test_alone_a_step_tears_neither_micro_batches_nor_pairs(recipe, mixup, batch):
    config = load(recipe, ["--mixture.batches", "mixed", "--mixture.repeat", "{}", "--model.mixup", str(mixup)])
    # nine steps an epoch, with 4 x 8, 9 x 4 and 4 x 8 samples: 11.1 in each; those of video are cut in two
    steps = joint.steps_of_each(config)
    assert steps == {
        "image": (round(20 * 4 * 8 / 9 / batch), batch),
        "video": (round(20 * 4 / 12), 12),
        "rgbd": (round(20 * 4 * 8 / 9 / batch), batch),
    }
    for name, found in steps.items():
        own = read(joint.alone(config, name, *found))
        check_pairs(own.model, own.data.batch, own.optimizer.accumulate)
        assert own.data.batch % own.optimizer.accumulate == 0


def test_every_training_is_measured_once(recipe, monkeypatch, capsys):
    trained = []

    def run_recipe(path, _threads):
        trained.append(path.stem)
        names = load(path).model.classes
        scores = {f"top1/{name}": 0.5 + 0.1 * (len(names) > 1) + 0.01 * int(path.stem[-1]) for name in names}
        return scores | {"depth->rgb/recall@1": 0.1, "depth->rgb/recall@1/chance": 0.02}, {"loss": 1.0}

    monkeypatch.setattr(joint, "run_recipe", run_recipe)
    words = [str(recipe.parent / "runs"), "--config", str(recipe), "--json", str(recipe.parent / "rows.jsonl")]
    assert joint.main([*words, "--seeds", "1"]) == 0
    assert trained == ["joint-0", "image-0", "video-0", "rgbd-0"]
    assert joint.main([*words, "--seeds", "2"]) == 0
    assert trained[4:] == ["joint-1", "image-1", "video-1", "rgbd-1"], "what was measured is not measured again"
    printed = capsys.readouterr().out
    assert "| video | 50.5 ± 0.7 | 60.5 ± 0.7 | +10.0 ± 0.0 | 2 |" in printed
    assert "| depth->rgb/recall@1 | 10.0 | nan | 2.0 |" in printed


def test_a_recipe_of_another_system_is_refused(tmp_path):
    path = Path(__file__).parents[2] / "configs" / "omnimae_b.toml"
    with pytest.raises(ValueError, match=r"omnimae_b\.toml is a recipe of omnimae; give one of omnivore$"):
        joint.main([str(tmp_path), "--config", str(path), "--json", str(tmp_path / "rows.jsonl")])


def test_a_recipe_of_one_data_set_is_refused(recipe, tmp_path):
    (tmp_path / "one.toml").write_text(dump(read(joint.alone(load(recipe), "image", 4, 8))))
    with pytest.raises(ValueError, match="one data set alone"):
        joint.main([str(tmp_path), "--config", str(tmp_path / "one.toml"), "--json", str(tmp_path / "rows.jsonl")])
