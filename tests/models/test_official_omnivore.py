from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnitrunk.engine import cli
from omnitrunk.engine.config import RunConfig, dump
from omnitrunk.engine.data import DataConfig, MixtureConfig
from omnitrunk.engine.weights import read_weights, start_from
from omnitrunk.models import Omnivore, OmnivoreConfig
from omnitrunk.models.layers import blocks, merging
from omnitrunk.models.official.state_dicts import from_official, to_official
from tests.models.small_omnivore import small_omnivore
from tests.models.test_parity import change
from tests.parity.__main__ import main

FIXTURE = Path(__file__).parents[1] / "fixtures" / "omnivore"


@pytest.fixture
def recorded(tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "omnivore"))


def test_everything_recorded_is_reproduced(recorded, capsys):
    assert main(["omnivore", str(recorded)]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("0 MISS") and "not covered" not in printed
    assert all(row in printed for row in ("rgbd.input_grad_norm.f64", "video.stage1", "relative_position_index"))
    assert main(["omnivore", str(recorded), "--float32"]) == 0


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("weights", "trunk.layers.0.blocks.1.attn.relative_position_bias_table"),
        ("weights", "trunk.depth_patch_embed.norm.bias"),
        ("inputs", "video.input"),
        ("inputs", "relative_position_index"),
        ("outputs", "rgbd.logits.f64"),
        ("outputs", "image.grad_norms.f64"),
        ("outputs", "image.stage0"),
    ],
)
def test_a_changed_number_is_a_miss(file, key, recorded, capsys):
    change(recorded / f"case_a.{file}.safetensors", key, 1 if "index" in key else 0.01)
    assert main(["omnivore", str(recorded)]) == 1
    assert "MISS" in capsys.readouterr().out


def test_another_epsilon_and_another_order_of_merging_are_misses(recorded, monkeypatch, capsys):
    forward = blocks.LayerNorm.forward
    with monkeypatch.context() as patch:
        patch.setattr(blocks.LayerNorm, "forward", lambda norm, x: forward(_with_epsilon(norm), x))
        assert main(["omnivore", str(recorded)]) == 1
    monkeypatch.setattr(
        merging.PatchMerging, "forward", lambda merge, x: _transposed(merge_forward(merge, _transposed(x)))
    )
    assert main(["omnivore", str(recorded)]) == 1


merge_forward = merging.PatchMerging.forward


def _transposed(x):
    return x.transpose(2, 3)


def _with_epsilon(norm):
    norm.eps = 1e-6
    return norm


def test_a_case_without_weights_fails(recorded, capsys):
    (recorded / "case_a.weights.safetensors").unlink()
    assert main(["omnivore", str(recorded)]) == 1
    assert "case_a lacks case_a.weights.safetensors" in capsys.readouterr().out


def test_tables_of_indices_are_computed_checked_and_dispensable(seed):
    config = small_omnivore(head_dropout={"video": 0.5})
    state = Omnivore(config, seed).state_dict()
    official = to_official(state, config)
    index = "trunk.layers.1.blocks.0.attn.relative_position_index"
    assert official[index].shape == (18, 18) and "heads.video.1.bias" in official and "heads.image.bias" in official
    without = {key: value for key, value in official.items() if not key.endswith("_index")}
    for given in (official, without):
        ours = from_official(given, config)
        assert ours.keys() == state.keys() and all(torch.equal(ours[name], state[name]) for name in state)
    with pytest.raises(ValueError, match=f"{index} is not what follows from the sizes"):
        from_official(official | {index: official[index].roll(1)}, config)


def recipe(path: Path, config: OmnivoreConfig) -> Path:
    side = config.image_shape[0]
    data, mixture = (
        DataConfig(size=side, frames=config.frames),
        MixtureConfig(sets={name: {} for name in config.classes}),
    )
    path.write_text(dump(RunConfig(data=data, mixture=mixture, model=config)))
    return path


def test_released_files_come_back_bit_by_bit(tmp_path, seed, capsys):
    config = small_omnivore(image_size=24)
    official = to_official(Omnivore(config, seed).state_dict(), config)
    released = {"trunk": {}, "heads": {}}
    for key, value in official.items():
        part, _, name = key.partition(".")
        released[part][name] = value
    torch.save(released, tmp_path / "in.torch")
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    sizes = ["--config", str(recipe(tmp_path / "recipe.toml", config))]
    assert cli.main(["convert", "omnivore", str(tmp_path / "in.torch"), str(ours), *sizes]) == cli.DONE
    assert "dropped 4" in capsys.readouterr().out
    assert cli.main(["convert", "omnivore", str(ours), str(back), "--to", "official"]) == cli.DONE
    again = torch.load(back, weights_only=True)
    for part, tensors in released.items():
        assert again[part].keys() == tensors.keys()
        assert all(torch.equal(again[part][name], value) for name, value in tensors.items())
    Omnivore(config).load_state_dict(load_file(ours))


@pytest.mark.parametrize("dropout", [{"kitchens": 0.5}, {}])
def test_a_file_of_one_head_may_have_it_without_a_name(tmp_path, seed, capsys, dropout):
    sets = {"image_sets": {}, "rgbd_sets": {}, "video_sets": {"kitchens": 9}}
    config = small_omnivore(image_size=24, head_dropout=dropout, **sets)
    model = Omnivore(config, seed).state_dict()
    official = to_official(model, config)
    assert f"heads.kitchens.{'1.' if dropout else ''}bias" in official, "written names are those of all files"
    trunk = {key.removeprefix("trunk."): value for key, value in official.items() if key.startswith("trunk.")}
    heads = {f"1.{name}": model[f"heads.kitchens.{name}"] for name in ("weight", "bias")}
    torch.save({"trunk": trunk, "heads": heads}, tmp_path / "in.torch")
    ours, sizes = tmp_path / "ours.safetensors", ["--config", str(recipe(tmp_path / "recipe.toml", config))]
    words = ["convert", "omnivore", str(tmp_path / "in.torch"), str(ours)]
    assert cli.main([*words, *sizes]) == cli.DONE
    assert "note     heads.1.weight was read as heads.kitchens." in capsys.readouterr().out
    found = load_file(ours)
    assert found.keys() == model.keys() and all(torch.equal(found[name], value) for name, value in model.items())
    both = recipe(tmp_path / "both.toml", small_omnivore(image_size=24, **sets | {"image_sets": {"image": 3}}))
    assert cli.main([*words, "--config", str(both)]) == cli.BAD_USAGE
    assert "lacks 'heads.image.weight'" in capsys.readouterr().err


def test_a_model_of_other_data_sets_starts_from_the_trunk(tmp_path, seed, capsys):
    config = small_omnivore(image_size=24, rgbd_sets={})
    torch.save(Omnivore(config, seed).state_dict(), tmp_path / "first.pth")
    model = Omnivore(small_omnivore(image_size=24, image_sets={"pets": 7}, rgbd_sets={}, video_sets={}), seed + 1)
    said = start_from(model, tmp_path / "first.pth")
    assert "without 4 of its own (heads.image, heads.video); 2 start afresh (heads.pets)" in said
    given = read_weights(tmp_path / "first.pth")
    assert all(torch.equal(given[name], value) for name, value in model.state_dict().items() if "heads" not in name)
