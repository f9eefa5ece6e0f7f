from __future__ import annotations

import re
import threading
from collections import Counter
from itertools import count
from pathlib import Path

import pytest
import torch

from omnitrunk.engine import checkpoint
from omnitrunk.engine.build import build
from omnitrunk.engine.check import check
from omnitrunk.engine.config import load, read
from omnitrunk.engine.data import Order, seed_of
from omnitrunk.engine.datasets import batches_of_each, data_sets
from omnitrunk.engine.distributed import Vote, World
from omnitrunk.engine.signals import REQUEUE
from omnitrunk.engine.step import compute_gradients, step_of, train_step
from omnitrunk.engine.train import train
from tests.engine import omnivore_files
from tests.engine.test_distributed import pairs
from tests.engine.tiny import log_of, needs_dali, weights_of, write_config

ROOT = Path(__file__).parents[2]
# Training samples of ImageNet-1K, Something-Something v2, Kinetics-400 as it could be downloaded, and SUN RGB-D's split
# for 19 kinds of scenes.
IMAGENET, SSV2, KINETICS, SUN = 1_281_167, 168_913, 240_000, 4_845
PUBLISHED = {
    "omnimae_b": {"rgb": IMAGENET, "video": SSV2},
    "omnivore_b": {"image": IMAGENET, "video": KINETICS, "rgbd": SUN},
    "omnivore_t": {"image": IMAGENET, "video": KINETICS, "rgbd": SUN},
}
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def joint(folder, *, steps=9, mixture=None, **sections):
    """An Omnivore of pictures, clips and pictures with depth, on noise."""
    values = {
        "run": {"folder": str(folder), "steps": steps, "device": "cpu"},
        "data": {"source": "random", "size": 16, "batch": 4, "frames": 2},
        "mixture": {"sets": {"image": {}, "clip": {"batch": 2}, "scene": {}}, "repeat": {"clip": 0.5}},
        "model": {
            "system": "omnivore",
            "image_sets": {"image": 8},
            "video_sets": {"clip": 9},
            "rgbd_sets": {"scene": 10},
            "image_size": 16,
            "frames": 2,
            "width": 8,
            "depths": [1, 2],
            "heads": [1, 2],
            "window": [1, 2, 2],
            "drop_path": 0.2,
        },
        "optimizer": {"lr": 1e-2, "warmup_steps": 2, "ema_decay": 0.9},
        "checkpoint": {"every": 2},
        "log": {"every": 2, "tensorboard": False},
    }
    values["mixture"] |= mixture or {}
    for name, fields in sections.items():
        values[name] = values.get(name, {}) | fields
    return read(values)


@pytest.mark.parametrize("mixed", [False, True])
def test_every_epoch_has_all_batches_of_every_data_set_in_an_order_of_its_own(seed, mixed):
    batches = {"a": 70, "b": 10, "c": 120}  # so many that no two orders are the same by chance
    order = Order(batches, seed, mixed)
    assert order.length == (120 if mixed else 200)
    epochs = [[order.at(epoch * order.length + place) for place in range(order.length)] for epoch in range(4)]
    for steps in epochs:
        assert Counter(name for names in steps for name in names) == batches
        assert all(len(set(names)) == len(names) >= 1 and (mixed or len(names) == 1) for names in steps)
    assert len({tuple(steps) for steps in epochs}) == 4
    assert epochs[0] != [Order(batches, seed + 1, mixed).at(place) for place in range(order.length)]


@pytest.mark.parametrize("recipe", sorted(PUBLISHED))
def test_an_epoch_of_a_published_recipe_is_as_long_as_its_header_says(recipe):
    path, rows = ROOT / "configs" / f"{recipe}.toml", PUBLISHED[recipe]
    header = path.read_text(encoding="utf-8").partition("\n\n")[0].replace("\n# ", " ")
    config, (epochs, steps) = load(path), re.search(r"(\d+) epochs of (\d+) steps", header).groups()
    copies = {name: one.data.copies for name, one in data_sets(config).items()}
    found = batches_of_each(config, {name: copies[name] * rows[name] for name in copies})
    assert list(found.values()) == [int(count) for count in re.findall(r"(\d+) of (?:pictures|clips|the)", header)]
    assert sum(found.values()) == int(steps) and config.run.steps == int(epochs) * int(steps)


def test_no_two_data_sets_share_a_seed(seed):
    seeds = {seed_of(key, name) for key in (seed, seed + 1) for name in ("image", "video", "order")}
    assert len(seeds) == 6
    assert all(0 <= key < 2**63 for key in seeds)


def test_each_data_set_has_its_fields_and_its_share_of_the_steps(tmp_path, seed):
    config = joint(tmp_path / "run", run={"seed": seed})
    assert {name: one.data.batch for name, one in data_sets(config).items()} == {"image": 4, "clip": 2, "scene": 4}
    assert [one.modalities for one in data_sets(config).values()] == [("rgb",), ("video",), ("rgb", "depth")]
    run = build(config, ALONE)
    with run.loader:
        sizes = {name: loader.dataset_size for name, loader in run.loader.loaders.items()}
        batches = {"image": sizes["image"] // 4, "clip": sizes["clip"] // 4, "scene": sizes["scene"] // 4}
        total = sum(batches.values())
        expected = {name: {"image": 4, "clip": 2, "scene": 4}[name] * batches[name] / total for name in batches}
        assert run.loader.samples_per_step == pytest.approx(expected)


@pytest.mark.parametrize("batches", ["separate", "mixed"])
def test_a_run_stopped_and_resumed_is_the_run_that_was_not(tmp_path, seed, batches):
    options = {"run": {"seed": seed}, "mixture": {"batches": batches, "accumulate": {"scene": 2}}}
    whole, parts = joint(tmp_path / "whole", **options), joint(tmp_path / "parts", **options)
    assert train(whole) == 0
    for last in (3, 6):
        assert _until(parts, last) == REQUEUE
    assert train(parts) == 0
    assert log_of(parts) == log_of(whole)
    assert weights_of(parts) == weights_of(whole)
    state = checkpoint.read_state(checkpoint.find(tmp_path / "whole"))
    assert set(state["samples_seen"]) == {"image", "clip", "scene"}
    assert sum(state["samples_seen"].values()) >= 9 * 2


def _until(config, last):
    """Train up to a step, as if a signal had come."""
    kept = checkpoint.complete(Path(config.run.folder))
    done = checkpoint.read_state(kept[-1])["step"] if kept else 0
    steps = count(done + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Vote, "cast", lambda _vote, _flag: next(steps) == last)
        return train(config)


def test_what_a_batch_does_not_use_rests(tmp_path, seed):
    """Neither weights nor moments of other heads and of the depth tokenizer change, nor do they decay."""
    # Without drop path: a block that is dropped for all samples of the first step would rest too.
    sections = {"model": {"drop_path": 0.0}, "optimizer": {"weight_decay": 0.5}}
    run = build(joint(tmp_path / "run", run={"seed": seed}, **sections), ALONE)
    used = {"image": {"heads.image."}, "clip": {"heads.clip."}, "scene": {"heads.scene.", "tokenizers.depth."}}
    with run.loader:
        for _ in range(12):
            batches = list(step_of(run.loader))
            before = [value.clone() for value in (*run.optimizer.params, *run.optimizer.exp_avg)]
            train_step(run.network, run.optimizer, iter(batches), lr=1e-2, precision="fp32", world=ALONE)
            after = [*run.optimizer.params, *run.optimizer.exp_avg]
            others = set().union(*(parts for name, parts in used.items() if name != batches[0].plan.dataset))
            for name, old, new in zip(run.optimizer.names * 2, before, after, strict=True):
                rests = name.startswith(tuple(others))
                assert torch.equal(old, new) == rests, name


def test_a_mixed_step_has_the_gradient_of_the_mean_over_all_its_samples(tmp_path, seed):
    mixture = {"sets": {"image": {}, "clip": {}, "scene": {"batch": 8}}, "accumulate": {"scene": 2}, "batches": "mixed"}
    config = joint(tmp_path / "run", run={"seed": seed}, mixture=mixture | {"repeat": {"scene": 2.0}})
    run = build(config, ALONE)
    with run.loader:
        batches = list(step_of(run.loader))
    assert [batch.plan.dataset for batch in batches] == ["image", "clip", "scene", "scene"]
    model = run.model.double()
    losses = compute_gradients(model, iter(_doubled(batches)), precision="fp32", world=ALONE)
    found = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    alone = [model(batch.inputs, batch.plan)["loss"] * len(batch) for batch in _doubled(batches)]
    mean = sum(alone) / 16
    mean.backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(found[name], value.grad, rtol=1e-9, atol=1e-12)
    assert float(losses["loss"]) == pytest.approx(mean.item(), rel=1e-5)
    assert float(losses["scene"]) == pytest.approx((alone[2] + alone[3]).item() / 8, rel=1e-5)


def _doubled(batches):
    for batch in batches:
        batch.tensors = {
            name: value.double() if value.is_floating_point() else value for name, value in batch.tensors.items()
        }
        yield batch


def test_the_log_has_a_mean_for_each_data_set_that_took_part(tmp_path, seed):
    config = joint(tmp_path / "run", run={"seed": seed}, log={"every": 1})
    assert train(config) == 0
    for record in log_of(config):
        there = [name for name in ("image", "clip", "scene") if record[name] is not None]
        assert len(there) == 1
        assert record[there[0]] == pytest.approx(record["loss"])


@pytest.mark.parametrize(("batches", "steps"), [("separate", 9), ("mixed", 4)])
def test_two_processes_are_one(tmp_path, seed, batches, steps):
    options = {"run": {"seed": seed}, "optimizer": {"lr": 1e-3, "clip": 1.0}, "mixture": {"batches": batches}}
    one, two = (joint(tmp_path / name, steps=steps, **options) for name in ("one", "two"))
    assert train(one) == 0
    assert pairs(write_config(tmp_path / "two.toml", two)) == ["0 0"]
    for record, expected in zip(log_of(two), log_of(one), strict=True):
        assert _numbers(record) == pytest.approx(_numbers(expected), rel=1e-4)


def _numbers(record):
    """What there is: a data set that took no part has no mean."""
    return {name: value for name, value in record.items() if value is not None}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"mixture": {"sets": {"image": {}, "clip": {}}}}, r"there is no \[mixture.sets.scene\]: add it"),
        ({"mixture": {"sets": {"image": {}, "clip": {}, "scene": {}, "x": {}}}}, "mixture.sets.x is no data set"),
        ({"mixture": {"repeat": {"x": 2.0}}}, "mixture.repeat names 'x'"),
        ({"mixture": {"repeat": {"clip": 0.0}}}, "mixture.repeat.clip = 0.0 must be above 0"),
        ({"mixture": {"repeat": {"clip": 1e12}}}, "mixture.repeat.clip = 1000000000000.0 must be above 0 and at most"),
        ({"mixture": {"accumulate": {"clip": 0}}}, "mixture.accumulate.clip = 0 must be 1 or more"),
        ({"mixture": {"sets": {"image": {"bach": 3}, "clip": {}, "scene": {}}}}, "image.bach is no field of"),
        ({"mixture": {"sets": {"image": {"batch": "x"}, "clip": {}, "scene": {}}}}, "mixture.sets.image: .*batch"),
        ({"data": {"copies": 2}, "model": {"mixup": 0.8}}, r"mixture.sets.image.copies = 2: mixup and cutmix"),
        ({"mixture": {"sets": {"image": {"size": 32}, "clip": {}, "scene": {}}}}, "mixture.sets.image.size = 32"),
        ({"mixture": {"sets": {"image": {}, "clip": {"frames": 4}, "scene": {}}}}, "mixture.sets.clip.frames = 4"),
    ],
)
def test_mistakes_are_named(tmp_path, sections, said):
    with pytest.raises(ValueError, match=said) as caught:
        joint(tmp_path / "run", **sections)
    assert "\n" not in str(caught.value)


def test_a_mixture_survives_the_file_that_it_is_written_to(tmp_path):
    config = joint(tmp_path / "run", mixture={"batches": "mixed"})
    write_config(tmp_path / "copy.toml", config)
    assert load(tmp_path / "copy.toml") == config


@needs_dali
def test_a_label_outside_the_head_is_named_before_the_run_starts(tmp_path, seed):
    root = omnivore_files.scenes(tmp_path, seed)
    config = omnivore_files.joint(tmp_path / "run", root, model={"video_sets": {"clips": 1}})
    with pytest.raises(ValueError, match="labels up to 1, but the head of clips tells 1 classes apart"):
        build(config, ALONE)
    assert not (tmp_path / "run").exists()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate()), "a loader was left open"


@needs_dali
def test_check_looks_at_every_data_set(tmp_path, seed):
    root = omnivore_files.scenes(tmp_path, seed)
    report = check(omnivore_files.joint(tmp_path / "run", root, mixture={"batches": "mixed"}), gpus=2, gpu="h200")
    for name in ("pictures", "clips", "views"):
        assert f"data     {name}: {root}: 6 samples of 2 classes" in report
    assert "samples/s on 2 x" in report
    with pytest.raises(ValueError, match=r"mixture\.sets\.clips\.batch = 3 does not divide into 2 GPUs"):
        sets = {"pictures": {}, "clips": {"batch": 3}, "views": {}}
        check(omnivore_files.joint(tmp_path / "run", root, mixture={"sets": sets}), gpus=2)
