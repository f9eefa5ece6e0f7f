from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from omnitrunk.engine.check import check
from omnitrunk.engine.config import load
from omnitrunk.engine.data import Loader
from omnitrunk.engine.doctor import report
from omnitrunk.engine.estimate import estimate, tokens_per_sample
from omnitrunk.engine.hardware import GPUS, gpu_named
from omnitrunk.kernels import dispatch, use
from omnitrunk.models import MultiMAE
from tests.engine.data_files import write_folder
from tests.engine.test_config import ROOT
from tests.engine.tiny import tiny


def test_the_published_recipe():
    text = check(load(ROOT / "configs" / "multimae_b.toml"), gpus=8, gpu="h200")
    assert "97.92 M parameters" in text.splitlines()[0]  # those of the release
    assert "predicted" in text and "8 x h200" in text and "data.root is not set" in text


def test_a_sample_of_a_joint_run_has_as_many_tokens_as_the_mean_over_its_data_sets():
    config = load(ROOT / "configs" / "omnivore_b.toml")
    picture, clip = 56 * 56, 16 * 56 * 56
    assert tokens_per_sample(config, {"image": 6.0, "video": 2.0, "rgbd": 1.0}) == (7 * picture + 2 * clip) / 9
    alone = load(ROOT / "configs" / "mae_b.toml")
    assert tokens_per_sample(alone, {"": 4096.0}) == alone.model.keep == 49


def test_data_that_is_elsewhere_is_no_obstacle(tmp_path):
    text = check(tiny(tmp_path, data={"source": "folder", "root": "no/where"}))
    assert "no/where is not on this machine" in text and "memory" in text


def test_data_is_probed(tmp_path, seed):
    paths = write_folder(tmp_path / "data", "train", 10, np.random.default_rng(seed), height=40, width=40)
    config = tiny(tmp_path, data={"source": "folder", "root": str(tmp_path / "data"), "bad_fraction": 0.5})
    text = check(config, gpu="a100")
    assert "10 samples of 2 classes" in text and "MB/s of files" in text and "bad" not in text
    paths["rgb"][3].write_bytes(b"")
    assert "1 of 10 probed are bad" in check(config)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"gpus": 3}, "data.batch = 8 does not divide into 3 GPUs"),
        ({"optimizer": {"accumulate": 16}}, {}, "does not divide into 1 GPUs x optimizer.accumulate = 16"),
        ({}, {"gpu": "h20000"}, "--gpu h20000 is not in the table; known: b200, h200"),
        ({"data": {"source": "folder", "root": "DATA"}}, {}, "set model.semseg_classes = 14, not 9"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path, monkeypatch, changes, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DATA").mkdir()
    (tmp_path / "DATA" / "dataset.json").write_text(json.dumps({"semseg_classes": 14}))
    with pytest.raises(ValueError) as error:
        check(tiny(tmp_path, **changes), **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_memory_is_what_the_backward_pass_keeps(seed):
    """The rule of thumb against the tensors that autograd really saves, at a size where the rule should hold."""
    config = tiny(
        "x",
        data={"batch": 4, "size": 128},
        model={"image_size": 128, "width": 128, "depth": 6, "heads": 4, "decoder_width": 64, "keep": 128},
    )
    model, saved = MultiMAE(config.model, seed), {}

    def keep(tensor):
        if tensor.requires_grad or tensor.grad_fn is not None or tensor.dim() > 1:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    plan_of = lambda positions: model.plan(seed, positions)  # noqa: E731
    names = (*config.model.inputs, *config.model.outputs)
    with Loader(config.data, names, seed=seed, make_plan=plan_of) as loader, use("reference"):
        batch = next(loader)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(batch.tensors, batch.plan)["loss"]
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    measured = sum(saved.values()) - weights
    needs = estimate(config, model, processes=1)
    assert needs.bytes["weights"] == weights and needs.bytes["average"] == 0 and loss.isfinite()
    assert needs.bytes["activations"] == pytest.approx(measured, rel=0.4)


def test_gpus_are_found_by_the_names_that_drivers_report():
    reported = {"NVIDIA H200": "h200", "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA GeForce RTX 4090": "4090"}
    for name, short in reported.items():
        assert gpu_named(name) is GPUS[short]
    assert gpu_named("Tesla T4") is None


def test_the_doctor_names_every_operation_and_its_backend():
    text = report()
    for operation in dispatch.OPERATIONS:
        assert text.count(f"  {operation} ") == 2  # on the CPU and on a GPU
    for word in ("python", "torch", "dali", "cpu", "gpu", "native"):
        assert any(line.startswith(word) for line in text.splitlines())
