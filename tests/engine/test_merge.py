"""omnitrunk merge: a joined run becomes a plain model with the same outputs, here and in timm."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from omnitrunk.engine import cli
from omnitrunk.engine.restore import restore
from omnitrunk.engine.train import train
from omnitrunk.engine.weights import read_blocks, start_from
from omnitrunk.models import build_model
from omnitrunk.models.official import timm
from omnitrunk.models.pathway import scales
from tests.engine.plain_vit import PlainViT
from tests.engine.test_convert import images
from tests.engine.test_stages import MODELS, classifier, stage


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two pre-trained runs, and a classifier that starts from one, joined with both by scales that are not small."""
    root = tmp_path_factory.mktemp("runs")
    for system in ("mae", "videomae"):
        assert train(stage(root / system, MODELS[system], steps=2)) == 0
    sources = [root / "videomae", root / "mae"]
    pathway = {"auxiliaries": [str(source) for source in sources], "scale": 0.3}
    model = {"system": "classifier", "encoder": MODELS["mae"], "classes": 10, "train_positions": True}
    run = {"folder": str(root / "joined"), "steps": 4, "weights": str(root / "mae")}
    assert train(stage(root / "joined", model, run=run, pathway=pathway)) == 0
    return root


def merged(runs, output, *options):
    assert cli.main(["merge", str(runs / "joined"), "-o", str(output), *options]) == cli.DONE
    return load_file(output)


@pytest.mark.parametrize("kind", ["ema", "model"])
def test_a_plain_model_gives_the_outputs_of_the_joined_one(runs, kind, tmp_path, seed, capsys):
    state = merged(runs, tmp_path / "plain.safetensors", *([] if kind == "ema" else ["--weights", kind]))
    said = capsys.readouterr().out
    assert f"{'averaged' if kind == 'ema' else 'trained'} weights of step 4" in said and "folded 8 layers of" in said
    joined = restore(runs / "joined").model.cpu()
    joined.load_state_dict(load_file(runs / "joined" / "latest" / f"{kind}.safetensors"))
    plain = build_model(joined.config, 0)
    plain.load_state_dict(state)
    batch, _ = images(seed)
    with torch.no_grad():
        ours, expected = plain.logits(batch), joined.logits(batch)
        assert (ours - expected).norm() <= 1e-6 * expected.norm()
        without = {name: value for name, value in joined.state_dict().items() if ".pathway." not in name}
        plain.load_state_dict(without)
        assert (plain.logits(batch) - expected).norm() > 1e-3 * expected.norm()


def test_the_file_says_what_was_folded(runs, tmp_path):
    merged(runs, tmp_path / "plain.safetensors")
    with safe_open(tmp_path / "plain.safetensors", "pt") as file:
        metadata = file.metadata()
    first, second = json.loads(metadata["auxiliaries"])
    assert (first["name"], second["name"]) == (str(runs / "videomae"), str(runs / "mae"))
    assert len(first["sha256"]) == 64 and first["sha256"] != second["sha256"]
    found = scales(restore(runs / "joined").model)
    assert first["scales"] == {name: values[0] for name, values in found.items()} and len(found) == 8


def test_it_is_a_start_an_auxiliary_and_a_vit(runs, tmp_path, seed):
    plain, vit_file = tmp_path / "plain.safetensors", tmp_path / "vit.safetensors"
    state = merged(runs, plain)
    joined = restore(runs / "joined").model.cpu()
    other = build_model(joined.config, 1)
    assert "0 start afresh" in start_from(other, plain)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    assert torch.equal(read_blocks(plain)["1.mlp.fc1.weight"], state["blocks.1.mlp.fc1.weight"])
    assert cli.main(["convert", "classifier", str(plain), str(vit_file), "--to", "timm"]) == cli.DONE
    vit = PlainViT(**timm.arguments(joined.config))
    vit.load_state_dict(load_file(vit_file))
    batch, pictures = images(seed)
    with torch.no_grad():
        torch.testing.assert_close(vit(pictures), joined.logits(batch), rtol=1e-4, atol=1e-5)


def test_timm_itself_gives_the_same_logits(runs, tmp_path, seed):
    transformers = pytest.importorskip("timm.models.vision_transformer", reason="needs timm: pip install timm")
    merged(runs, tmp_path / "plain.safetensors")
    files = [str(tmp_path / name) for name in ("plain.safetensors", "vit.safetensors")]
    assert cli.main(["convert", "classifier", *files, "--to", "timm"]) == cli.DONE
    joined = restore(runs / "joined").model.cpu()
    vit = transformers.VisionTransformer(**timm.arguments(joined.config))
    vit.load_state_dict(load_file(files[1]), strict=True)
    batch, pictures = images(seed)
    with torch.no_grad():
        torch.testing.assert_close(vit.eval()(pictures), joined.logits(batch), rtol=1e-4, atol=1e-5)


def test_what_is_not_folded_is_not_mistaken_for_a_model(runs):
    for take in (read_blocks, lambda path: start_from(restore(runs / "mae").model, path)):
        with pytest.raises(ValueError, match=r"has joined layers .*omnitrunk merge"):
            take(runs / "joined")


def test_a_classifier_takes_the_norm_of_a_classifier_only(runs, tmp_path):
    joined = restore(runs / "joined").model
    with torch.no_grad():
        pretrained = load_file(runs / "mae" / "latest" / "ema.safetensors")
        pretrained["norm.weight"] += 3
    torch.save(pretrained, tmp_path / "pretrained.pth")
    other = build_model(joined.config, 1)
    start_from(other, tmp_path / "pretrained.pth")
    assert torch.equal(other.norm.weight, torch.ones_like(other.norm.weight))
    merged(runs, tmp_path / "plain.safetensors")
    start_from(other, tmp_path / "plain.safetensors")
    assert torch.equal(other.norm.weight, joined.norm.weight)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mae", "has no joined layers: there is nothing to fold"),
        ("nothing", "there is nothing; give a run"),
        (".", "neither a complete checkpoint nor a run folder"),
    ],
)
def test_a_mistake_is_one_line(runs, source, message, tmp_path, capsys):
    output = tmp_path / "plain.safetensors"
    assert cli.main(["merge", str(runs / source), "-o", str(output)]) == cli.BAD_USAGE
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not output.exists()


def test_the_file_must_have_room_for_metadata(runs, tmp_path, capsys):
    assert cli.main(["merge", str(runs / "joined"), "-o", str(tmp_path / "plain.pth")]) == cli.BAD_USAGE
    assert "plain.pth must end in .safetensors" in capsys.readouterr().err


def test_weights_that_a_run_has_not_are_refused(runs, tmp_path, capsys):
    config = classifier(tmp_path / "run", runs / "mae", auxiliaries=[runs / "mae"], optimizer={"ema_decay": 0.0})
    assert train(config) == 0
    command = ["merge", str(tmp_path / "run"), "-o", str(tmp_path / "plain.safetensors")]
    assert cli.main([*command, "--weights", "ema"]) == cli.BAD_USAGE
    assert "has no averaged weights" in capsys.readouterr().err
    assert cli.main(command) == cli.DONE
    assert "trained weights of step 6" in capsys.readouterr().out
