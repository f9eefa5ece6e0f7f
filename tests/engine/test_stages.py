"""Pre-training of every system, then a classifier that starts from it, joined with others: each resumes exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from omnitrunk.engine import folder
from omnitrunk.engine.config import read
from omnitrunk.engine.drawing.scales import draw_scales
from omnitrunk.engine.drawing.show import draw_sheet
from omnitrunk.engine.restore import restore
from omnitrunk.engine.train import train
from omnitrunk.engine.weights import read_blocks, start_from
from omnitrunk.models import build_model
from omnitrunk.models.pathway import merge, scales
from tests.engine.tiny import log_of, weights_of

SIZES = {"width": 16, "depth": 2, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
MODELS = {
    "mae": {"system": "mae", "image_size": 32, "patch_size": 8, **SIZES},
    "videomae": {"system": "videomae", "frames": 4, "image_size": 32, "patch_size": 8, **SIZES},
    "audiomae": {"system": "audiomae", "frames": 16, "mels": 32, "patch_size": 8, **SIZES},
    "pointmae": {"system": "pointmae", "points": 64, "groups": 8, "group_size": 4, **SIZES, "decoder_width": 16},
}


def stage(path, model, steps=6, **sections):
    values = {
        "run": {"folder": str(path), "steps": steps},
        "data": {"source": "random", "batch": 4, "size": 32, "frames": 4, "seconds": 0.2, "points": 64, "threads": 1},
        "model": model,
        "optimizer": {"lr": 1e-3, "ema_decay": 0.5},
        "checkpoint": {"every": 3},
        "log": {"every": 2, "tensorboard": False},
    }
    for section, fields in sections.items():
        values[section] = {**values.get(section, {}), **fields}
    return read(values)


def classifier(path, source, system="mae", auxiliaries=(), **sections):
    model = {"system": "classifier", "encoder": MODELS[system], "classes": 10, "layer_decay": 0.7, "drop_path": 0.1}
    joined = {"pathway": {"auxiliaries": [str(name) for name in auxiliaries]}}
    return stage(path, model, run={"folder": str(path), "steps": 6, "weights": str(source)}, **joined, **sections)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    root = tmp_path_factory.mktemp("pretrained")
    for system, model in MODELS.items():
        assert train(stage(root / system, model)) == 0
    return root


def stop_after(monkeypatch, step):
    """Interrupt a run behind the checkpoint of `step`, as a kill would."""
    from omnitrunk.engine.build import Run

    save = Run.save

    def killed(run, at):
        save(run, at)
        if at == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", killed)


def same_when_interrupted(monkeypatch, config, interrupted):
    assert train(config) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(interrupted)
    assert not folder.is_finished(interrupted)
    assert train(interrupted) == 0
    assert weights_of(config) == weights_of(interrupted) and log_of(config) == log_of(interrupted)


@pytest.mark.parametrize("system", MODELS)
def test_pretraining_resumes_exactly(system, tmp_path, monkeypatch):
    same_when_interrupted(
        monkeypatch, stage(tmp_path / "whole", MODELS[system]), stage(tmp_path / "cut", MODELS[system])
    )


def test_a_joined_classifier_resumes_exactly_without_what_it_started_from(pretrained, tmp_path, monkeypatch):
    sources = [pretrained / "mae", pretrained / "videomae"]
    same_when_interrupted(
        monkeypatch,
        classifier(tmp_path / "whole", sources[0], auxiliaries=sources),
        classifier(tmp_path / "cut", sources[0], auxiliaries=sources),
    )
    trained = restore(tmp_path / "whole")
    found = scales(trained.model)
    assert len(found) == 8 and all(len(values) == 2 and all(values) for values in found.values())


def test_the_classifier_starts_from_the_averaged_encoder(pretrained, tmp_path):
    config = classifier(tmp_path / "run", pretrained / "mae", optimizer={"lr": 1e-12, "ema_decay": 0.0})
    assert train(config) == 0
    ours, theirs = restore(tmp_path / "run").model.state_dict(), restore(pretrained / "mae").model.state_dict()
    shared = [name for name in ours if name in theirs and not name.startswith("norm.")]
    assert len(shared) > 20
    for name in shared:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)


def test_folded_pathways_give_the_same_answers(pretrained, tmp_path):
    config = classifier(tmp_path / "run", pretrained / "mae", auxiliaries=[pretrained / "videomae"])
    assert train(config) == 0
    model = restore(tmp_path / "run").model
    plain = type(model)(model.config)
    plain.load_state_dict(merge(model.state_dict()))
    batch = {"rgb": torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)}
    torch.testing.assert_close(plain.logits(batch), model.logits(batch), rtol=1e-5, atol=1e-6)


def test_scales_are_logged_and_drawn(pretrained, tmp_path):
    sources = [pretrained / "mae", pretrained / "videomae"]
    config = classifier(
        tmp_path / "run",
        sources[0],
        auxiliaries=sources,
        log={"images_every": 6, "tensorboard": True},
        optimizer={"lr": 1e-3, "ema_decay": 0.0},
    )
    assert train(config) == 0
    model = restore(tmp_path / "run").model
    *_, last = log_of(config)
    assert last["scales"] == scales(model)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert events.Scalars("pathway 1/blocks.0.attn.qkv")[-1].value == last["scales"]["blocks.0.attn.qkv"][1]
    assert list((tmp_path / "run" / "samples").iterdir())
    picture = np.asarray(draw_sheet(config, model, torch.device("cpu")))
    empty = np.asarray(draw_scales({name: [0.0, 0.0] for name in last["scales"]}, ["mae", "videomae"]))
    assert picture.shape == empty.shape and (picture != empty).any()


def test_a_classifier_without_pathways_draws_nothing_and_says_so(pretrained, tmp_path):
    with pytest.raises(ValueError, match="a classifier without pathways has nothing to draw"):
        classifier(tmp_path / "run", pretrained / "mae", log={"images_every": 3})
    config = classifier(tmp_path / "run", pretrained / "mae")
    with pytest.raises(ValueError, match="show the run that it starts from"):
        draw_sheet(config, build_model(config.model, 0), torch.device("cpu"))


def test_released_files_serve_as_auxiliaries(pretrained, tmp_path):
    blocks = read_blocks(pretrained / "videomae")
    wrapped = {f"module.encoder.blocks.{name}": value for name, value in blocks.items()} | {
        "module.head.bias": torch.ones(2)
    }
    torch.save({"model": wrapped, "epoch": 3}, tmp_path / "release.pth")
    found = read_blocks(tmp_path / "release.pth")
    assert found.keys() == blocks.keys() and all(torch.equal(found[name], blocks[name]) for name in blocks)


def test_weights_that_do_not_fit_are_one_line(pretrained, tmp_path):
    target = restore(pretrained / "mae").model
    for source, message in (
        (pretrained / "videomae", "lacks class_token|which the model lacks"),
        (tmp_path / "nothing.pth", "holds no weights that can be read"),
        (tmp_path, "neither a complete checkpoint nor a run folder"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            start_from(target, source)
        assert "\n" not in str(error.value)
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no transformer blocks"):
        read_blocks(tmp_path / "other.pth")
    (Path(tmp_path) / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="holds no weights that can be read"):
        read_blocks(tmp_path / "broken.safetensors")
