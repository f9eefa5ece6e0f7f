"""omnitrunk convert: files of releases to ours and back, what it says, and what it refuses."""

from __future__ import annotations

import argparse
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnitrunk.engine import cli, convert
from omnitrunk.engine.convert import Request
from omnitrunk.engine.datasets import data_sets
from omnitrunk.engine.restore import restore
from omnitrunk.engine.train import train
from omnitrunk.engine.weights import Weights, open_weights, read_weights
from omnitrunk.models.modality import IMAGENET_MEAN, IMAGENET_STD
from omnitrunk.models.official import timm
from omnitrunk.models.official.state_dicts import layout
from tests.engine.plain_vit import PlainViT
from tests.engine.test_stages import MODELS, classifier, stage
from tests.engine.tiny import MODEL, tiny, write_config
from tests.models.test_transfer import assert_same, official_state


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pre-trained run, and a classifier that starts from it, joined with itself."""
    root = tmp_path_factory.mktemp("runs")
    assert train(stage(root / "mae", MODELS["mae"], steps=2)) == 0
    assert train(classifier(root / "joined", root / "mae", auxiliaries=[root / "mae"])) == 0
    return root


def recipe(folder, system):
    config = tiny("run", model=MODEL) if system == "multimae" else stage("run", MODELS[system])
    return config.model, write_config(folder / f"{system}.toml", config)


def images(seed, count=3):
    """The same pictures as we take them and as a ViT does."""

    pixels = torch.randint(0, 256, (count, 32, 32, 3), generator=torch.Generator().manual_seed(seed))
    standardized = (pixels / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    return {"rgb": pixels.to(torch.uint8)}, standardized.permute(0, 3, 1, 2)


@pytest.mark.parametrize("system", ["multimae", *MODELS])
def test_files_come_back_bit_by_bit(system, tmp_path, seed, capsys):
    model, config = recipe(tmp_path, system)
    state = official_state(layout(model), seed)
    container = "base_model" if system == "pointmae" else "model"
    released = {"epoch": 7, container: state, "args": argparse.Namespace(lr=1e-3)}
    torch.save(released, tmp_path / "in.pth")
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    assert cli.main(["convert", system, str(tmp_path / "in.pth"), str(ours), "--config", str(config)]) == cli.DONE
    said = capsys.readouterr().out
    assert "beside it epoch, args" in said and f"used {len(state)}  dropped 0  resized 0  absent 0" in said
    assert cli.main(["convert", system, str(ours), str(back), "--to", "official"]) == cli.DONE
    assert_same(torch.load(back, weights_only=True)[container], state)


def test_a_released_encoder_and_a_recipe_give_weights_to_start_from_and_to_join(tmp_path, seed, capsys):
    """The recipe is a classifier's, with pictures of another size than the file was trained on."""
    small, big = (stage("run", {**MODELS["mae"], "image_size": size}, data={"size": size}) for size in (32, 64))
    state = official_state(layout(small.model), seed)
    encoder = {f"module.{key}": value for key, value in state.items() if "decoder" not in key and key != "mask_token"}
    torch.save({"model": encoder}, tmp_path / "vit.pth")
    target = stage(
        tmp_path / "run",
        {"system": "classifier", "encoder": {**MODELS["mae"], "image_size": 64}, "classes": 10},
        data={"size": 64},
        run={"folder": str(tmp_path / "run"), "steps": 1, "weights": str(tmp_path / "ours.safetensors")},
        pathway={"auxiliaries": [str(tmp_path / "ours.safetensors")]},
    )
    config = write_config(tmp_path / "recipe.toml", target)
    command = ["convert", "mae", str(tmp_path / "vit.pth"), str(tmp_path / "ours.safetensors"), "--config", str(config)]
    assert cli.main([*command, "--report", str(tmp_path / "report.json")]) == cli.DONE
    said = capsys.readouterr().out
    assert "resized  module.pos_embed: 4 x 4 to 8 x 8" in said and "encoder's" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["used"].keys() == encoder.keys() and report["used"]["module.cls_token"] == ["class_token"]
    assert report["resized"] == {"module.pos_embed": [[4, 4], [8, 8]]}
    assert train(target) == 0
    assert big.model.total_tokens == len(read_weights(tmp_path / "ours.safetensors")["tokenizer.position"])


def test_a_run_becomes_an_official_file_and_says_which_weights(runs, tmp_path, capsys):
    for kind in ("ema", "model"):
        official, back = tmp_path / f"{kind}.safetensors", tmp_path / f"{kind}_back.safetensors"
        extra = [] if kind == "ema" else ["--weights", kind]
        assert cli.main(["convert", "mae", str(runs / "mae"), str(official), "--to", "official", *extra]) == cli.DONE
        said = capsys.readouterr().out
        assert ("averaged weights of step 2" if kind == "ema" else "trained weights of step 2") in said
        assert "pos_embed" in load_file(official)
        assert cli.main(["convert", "mae", str(official), str(back)]) == cli.DONE
        assert_same(load_file(back), load_file(runs / "mae" / "latest" / f"{kind}.safetensors"))


def test_a_pretrained_encoder_in_timm_gives_the_same_tokens(runs, tmp_path, seed, capsys):
    output = tmp_path / "vit.safetensors"
    assert cli.main(["convert", "mae", str(runs / "mae"), str(output), "--to", "timm"]) == cli.DONE
    assert "timm.models.VisionTransformer(img_size=(32, 32), patch_size=8, " in capsys.readouterr().out
    trained = restore(runs / "mae")
    vit = PlainViT(**timm.arguments(trained.config.model))
    vit.load_state_dict(load_file(output))
    batch, pictures = images(seed)
    expected = vit.double().forward_features(pictures.double())
    torch.testing.assert_close(trained.model.cpu().encode(batch).double(), expected, rtol=1e-5, atol=1e-5)
    assert cli.main(["convert", "mae", str(output), str(tmp_path / "back.safetensors")]) == cli.DONE
    back, state = load_file(tmp_path / "back.safetensors"), trained.model.state_dict()
    assert_same(back, {name: value for name, value in state.items() if not name.startswith("decoder.")})


def test_timm_itself_loads_it_strictly_and_agrees(runs, tmp_path, seed):
    transformers = pytest.importorskip("timm.models.vision_transformer", reason="needs timm: pip install timm")
    output = tmp_path / "vit.safetensors"
    assert cli.main(["convert", "mae", str(runs / "mae"), str(output), "--to", "timm"]) == cli.DONE
    trained = restore(runs / "mae")
    vit = transformers.VisionTransformer(**timm.arguments(trained.config.model))
    vit.load_state_dict(load_file(output), strict=True)
    batch, pictures = images(seed)
    expected = vit.eval().forward_features(pictures)
    torch.testing.assert_close(trained.model.cpu().encode(batch), expected, rtol=1e-4, atol=1e-5)


def test_a_joined_run_is_m2pt_and_nothing_else(runs, tmp_path, capsys):
    official, back = tmp_path / "m2pt.pth", tmp_path / "back.safetensors"
    assert cli.main(["convert", "m2pt", str(runs / "joined"), str(official), "--to", "official"]) == cli.DONE
    state = torch.load(official, weights_only=True)["model"]
    assert state["blocks.1.mlp.fc2.cross_modal_scale"].shape == (1,) and "blocks.0.attn.qkv.aux_weight" in state
    config = str(runs / "joined" / "config.toml")
    assert cli.main(["convert", "m2pt", str(official), str(back), "--config", config]) == cli.DONE
    assert_same(load_file(back), load_file(runs / "joined" / "latest" / "ema.safetensors"))
    capsys.readouterr()
    for system, target in (("classifier", "official"), ("classifier", "timm"), ("m2pt", "timm")):
        assert cli.main(["convert", system, str(runs / "joined"), str(back), "--to", target]) == cli.BAD_USAGE
        assert "has joined layers" in capsys.readouterr().err
    assert cli.main(["convert", "classifier", str(official), str(back), "--config", config]) == cli.BAD_USAGE
    assert "cross_modal_scale" in capsys.readouterr().err


def test_allowed_keys_are_left_out(tmp_path, seed, capsys):
    model, config = recipe(tmp_path, "mae")
    torch.save({**official_state(layout(model), seed), "head.weight": torch.ones(3)}, tmp_path / "in.pth")
    command = ["convert", "mae", str(tmp_path / "in.pth"), str(tmp_path / "o.pt"), "--config", str(config)]
    assert cli.main(command) == cli.BAD_USAGE
    said = capsys.readouterr().err
    assert "unexpected 'head.weight'" in said and "--allow it by name" in said and said.count("\n") == 1
    assert not (tmp_path / "o.pt").exists()
    assert cli.main([*command, "--allow", "tail", "head.*"]) == cli.DONE
    said = capsys.readouterr().out
    assert "dropped  head.weight: allowed" in said and "'tail' allowed nothing" in said


class Evil:
    def __reduce__(self):
        return print, ("this ran",)


def test_files_that_are_no_weights_are_one_line(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": torch.ones(1)}, "evil": Evil()}, "evil.pth")
    torch.save([torch.ones(1)], "list.pth")
    torch.save({"epoch": 3}, "empty.pth")
    save_file({"a": torch.ones(3)}, "good.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.pth").write_text("no weights")
    for source, message in (
        ("evil.pth", "print, and files must not run code"),
        ("list.pth", "a list and no state dict"),
        ("empty.pth", "no tensors among epoch"),
        ("text.pth", "holds no weights that can be read"),
        ("nothing.pth", "there is nothing; give a run"),
        ("folder", "folder is neither a complete checkpoint nor a run folder"),
        ("good.safetensors", "lacks 'cls_token'"),
        (str(runs / "mae"), "has our names already: add --to official or --to timm"),
    ):
        assert cli.main(["convert", "mae", source, "out.safetensors"]) == cli.BAD_USAGE, source
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and "this ran" not in said.out, said.err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_cut_anywhere_is_one_line(suffix, tmp_path):
    tensors, path = {"blocks.0.weight": torch.arange(40.0)}, tmp_path / f"whole{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save({"model": tensors}, path)
    whole, cut = path.read_bytes(), tmp_path / f"cut{suffix}"
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="holds no weights that can be read") as error:
            open_weights(cut)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mea", "RUN", "o.pth", "--to", "official"], "not of a mea"),
        (["mea", "FILE", "o.pth"], "unknown system 'mea'; did you mean 'mae'?"),
        (["videomae", "RUN", "o.pth", "--to", "official"], "that of a mae, not of a videomae"),
        (["mae", "RUN", "o.bin", "--to", "official"], "o.bin must end in .safetensors, .pth or .pt"),
        (["mae", "RUN", "no/o.pth", "--to", "official"], "its parent is no folder"),
        (["mae", "JOINED", "o.pth", "--to", "official"], "has joined layers"),
        (["mae", "FILE", "o.pth", "--weights", "ema"], "is no run"),
        (["mae", "TUNED", "o.pth", "--to", "official"], "holds a classifier: convert it as one"),
        (["mae", "RUN", "o.pth", "--to", "official", "--model.widht", "3"], "did you mean model.width?"),
        (["pointmae", "FILE", "o.pth", "--to", "timm"], "no place for a pointmae"),
    ],
)
def test_mistakes_are_one_line(runs, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.ones(3)}, "f.safetensors")
    assert cli.main(["merge", str(runs / "joined"), "-o", "tuned.safetensors"]) == cli.DONE
    places = {"RUN": str(runs / "mae"), "JOINED": str(runs / "joined"), "FILE": "f.safetensors"}
    places["TUNED"] = "tuned.safetensors"
    assert cli.main(["convert", *(places.get(word, word) for word in arguments)]) == cli.BAD_USAGE
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said


@pytest.mark.parametrize(
    ("system", "overrides", "heads"),
    [
        ("omnivore", (), {"image": 1000, "video": 400, "rgbd": 19}),
        ("omnivore", ("--run.seed", "3", "--model.rgbd_sets.rgbd", "37"), {"image": 1000, "video": 400, "rgbd": 37}),
        ("omnivore", ("--model.rgbd_sets={}", "--model.video_sets", '{"video": 9}'), {"image": 1000, "video": 9}),
        ("part_segmenter", (), None),
    ],
)
def test_a_released_file_alone_has_the_published_sizes(system, overrides, heads):
    request = Request(system=system, source=Path("f.pth"), output=Path("o.pth"), overrides=overrides)
    config, sizes = convert._config(request, Weights(path=Path("f.pth"), tensors={}, origin="torch file"))
    assert sizes == f"the published {system}" and config.model.system == system
    if heads:
        assert config.model.classes == heads and list(data_sets(config)) == list(heads)


@pytest.mark.parametrize("output", ["in.pth", "./in.pth", "link.pth"])
def test_what_is_converted_is_never_replaced(output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": torch.ones(1)}}, "in.pth")
    (tmp_path / "link.pth").symlink_to("in.pth")
    before = (tmp_path / "in.pth").read_bytes()
    for words in ([output], ["o.pth", "--report", output]):
        assert cli.main(["convert", "mae", "in.pth", *words]) == cli.BAD_USAGE
        said = f"{Path(output)} would replace what is converted: give another name"
        assert capsys.readouterr().err == f"omnitrunk: error: {said}\n"
    assert (tmp_path / "in.pth").read_bytes() == before


def test_no_file_is_written_into_the_checkpoint_that_is_converted(runs, capsys):
    inside = runs / "mae" / "latest" / "model.safetensors"
    assert cli.main(["convert", "mae", str(runs / "mae"), str(inside), "--to", "official"]) == cli.BAD_USAGE
    assert "would replace what is converted" in capsys.readouterr().err


def test_what_was_there_stays_when_writing_fails(runs, tmp_path, monkeypatch, capsys):
    output = tmp_path / "o.safetensors"
    output.write_text("older")

    def fail(number):
        def write(*_arguments):
            raise OSError(number, os.strerror(number))

        return write

    fixes = {errno.ENOSPC: "No space left on device; make room", errno.EACCES: "denied; check the permissions of"}
    for number, said in fixes.items():
        monkeypatch.setattr("omnitrunk.engine.weights.save_file", fail(number))
        assert cli.main(["convert", "mae", str(runs / "mae"), str(output), "--to", "official"]) == cli.FAILED
        found = capsys.readouterr().err
        assert f"cannot write {output}: " in found and said in found
    assert output.read_text() == "older" and list(tmp_path.iterdir()) == [output]
