from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnitrunk.engine.config import as_dict, field_names, load, read, section_kinds
from omnitrunk.engine.idle import without_effect
from omnitrunk.models import SYSTEMS
from tests.engine.tiny import tiny, write_config

ROOT = Path(__file__).parents[2]


def test_what_is_written_loads_back(tmp_path):
    config = tiny(
        tmp_path / "a b",
        optimizer={"betas": [0.8, 0.99], "lr": 3e-4, "eps": 1e-8, "ema_decay": 0.999},
        model={"alphas": {"rgb": 2, "depth": 0.5}, "inputs": ["rgb", "depth"], "outputs": ["rgb"]},
        run={"precision": "bf16"},
    )
    assert load(write_config(tmp_path / "config.toml", config)) == config


@settings(max_examples=12, deadline=None)
@given(
    folder=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1),
    lr=st.floats(1e-12, 1e3),
    seed=st.integers(0, 2**40),
    flip=st.booleans(),
)
def test_any_value_survives_the_file(tmp_path_factory, folder, lr, seed, flip):
    path = tmp_path_factory.mktemp("config") / "config.toml"
    config = read({"run": {"folder": folder, "seed": seed}, "data": {"flip": flip}, "optimizer": {"lr": lr}})
    assert load(write_config(path, config)) == config


def test_stored_as_json_and_read_back():
    config = tiny("x", model={"inputs": ["rgb"], "outputs": ["rgb", "norm_rgb"]})
    assert read(as_dict(config)) == config


def test_overrides_win(tmp_path):
    path = write_config(tmp_path / "config.toml", tiny("x", steps=5))
    changed = load(path, ["--run.steps", "7", "--optimizer.lr=0.5", "--data.flip", "false", "--model.alphas.rgb", "2"])
    assert (changed.run.steps, changed.optimizer.lr, changed.data.flip) == (7, 0.5, False)
    assert changed.model.alphas == {"rgb": 2.0}
    assert load(path, ["--model.inputs", '["rgb"]']).model.inputs == ("rgb",)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[run]\nstep = 3", [], "unknown field run.step; did you mean run.steps?"),
        ("[optimiser]\nlr = 3.0", [], "unknown field optimiser.lr; did you mean optimizer.lr?"),
        ("[model]\nseed = 3", [], "unknown field model.seed; did you mean run.seed?"),
        ("steps = 3", [], "unknown field steps; did you mean run.steps?"),
        ("", ["--data.bach", "3"], "unknown field data.bach; did you mean data.batch?"),
        ("[run]\nsteps = 'many'", [], "run.steps: expected a whole number, got many"),
        ("[run]\nsteps = 1.5", [], "run.steps: expected a whole number, got 1.5"),
        ("", ["--run.precision", "fp8"], "run.precision: expected one of fp32, bf16, got fp8"),
        ("[run", [], "is not valid TOML"),
        ("[run]\nsteps = 0", [], "run.steps = 0"),
        ("[model]\nkeep = 589", [], "model: keep = 589 must lie in 1..588"),
        ("[model]\nimage_size = 225", [], "model: image_size = (225, 225) does not divide"),
        ("[data]\nsize = 64", [], "data.size = 64 gives square pictures, but model.image_size is 224 x 224"),
        (
            '[model]\nsystem = "classifier"',
            ["--data.size", "96"],
            "but model.encoder.image_size is 224 x 224: set both",
        ),
        ("[run]\nsteps = 5\n[optimizer]\nwarmup_steps = 6", [], "warmup_steps = 6 is longer than run.steps = 5"),
        ("[optimizer]\nlr = -1.0", [], "optimizer.min_lr = 0.0 must lie between 0 and a positive lr"),
    ],
)
def test_a_mistake_is_one_line_with_the_fix(tmp_path, text, overrides, message):
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load(path, overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the configuration .*nothing\.toml: No such file"):
        load(tmp_path / "nothing.toml")


def test_options_without_effect_are_named():
    idle = tiny("x", model={"inputs": ["rgb"], "outputs": ["rgb"], "alphas": 2.0}, data={"flip": False})
    found = " ".join(without_effect(idle))
    for name in ("model.alphas", "model.semseg_classes", "data.flip", "data.threads"):
        assert f"{name} has no effect" in found
    assert "data.root" not in found
    assert not without_effect(read({}))


def test_every_recipe_loads_without_warnings():
    recipes = sorted((ROOT / "configs").glob("*.toml"))
    assert recipes
    for path in recipes:
        assert not without_effect(load(path)), path


def test_every_field_is_read_somewhere():
    read_names = {
        node.attr
        for folder in ("engine", "models")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    names = {name for system in SYSTEMS for name in field_names(section_kinds(system))}
    assert not [name for name in names if name.partition(".")[2] not in read_names]


def test_every_field_is_documented_where_it_is_declared():
    sections = {kind for system in SYSTEMS for kind in section_kinds(system).values()}
    for kind in {base for section in sections for base in section.__mro__ if dataclasses.is_dataclass(base)}:
        source = Path(__import__(kind.__module__, fromlist=["_"]).__file__).read_text(encoding="utf-8")
        body = next(
            node.body
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ClassDef) and node.name == kind.__name__
        )
        for place, node in enumerate(body):
            if isinstance(node, ast.AnnAssign) and node.target.id in {item.name for item in dataclasses.fields(kind)}:
                after = body[place + 1]
                assert isinstance(after, ast.Expr) and isinstance(after.value.value, str), node.target.id


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_system_decides_which_fields_there_are(system):
    parts = getattr(SYSTEMS[system].config(), "parts", 0)
    config = read({"model": {"system": system}}, ["--data.size=224", f"--data.parts={parts}"])
    assert config.model == SYSTEMS[system].config()
    assert read(as_dict(config)) == config
    assert read({"data": {"parts": parts}}, ["--model.system", system]) == config


def test_a_field_of_another_system_is_refused():
    with pytest.raises(ValueError, match=r"unknown field model.keep; did you mean"):
        read({"model": {"system": "mae", "keep": 3}})
    with pytest.raises(ValueError, match=r"unknown system 'maee'; did you mean 'mae'"):
        read({}, ["--model.system=maee"])


def test_a_field_of_a_data_set_is_overridden_alone(tmp_path):
    path = tmp_path / "run.toml"
    text = (
        '[mixture.sets.image]\nbatch = 4\n[mixture.sets.rgbd]\nroot = "a"\ndepth_as = "disparity"\ndepth_unit = 0.001\n'
    )
    path.write_text('[model]\nsystem = "omnivore"\nrgbd_sets = { rgbd = 3 }\n' + text)
    words = [
        "--mixture.sets.rgbd.root",
        "b c",
        "--mixture.sets.image.batch=8",
        "--mixture.sets.image.crop_area",
        "[0.5, 1]",
    ]
    config = load(path, [*words, "--run.seed", "3"])
    expected = {"root": "b c", "depth_as": "disparity", "depth_unit": 0.001}
    assert config.mixture.sets == {"image": {"batch": 8, "crop_area": [0.5, 1]}, "rgbd": expected}
    assert config.run.seed == 3
    with pytest.raises(ValueError, match=r"--mixture\.sets\.rgbd\.root needs a value"):
        load(path, ["--mixture.sets.rgbd.root"])
