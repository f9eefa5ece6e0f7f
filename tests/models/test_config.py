from __future__ import annotations

import pytest

from omnitrunk.models import MultiMAEConfig
from tests.models.small import small_config


def test_defaults_are_the_published_base_model():
    config = MultiMAEConfig()
    assert [config.tokens(name) for name in config.inputs] == [196] * 3
    assert {name: config.patch_values(name) for name in config.outputs} == {
        "rgb": 768, "depth": 256, "semseg": 2128, "norm_rgb": 768,
    }  # fmt: skip
    assert config.total_tokens == 588 and config.concentrations == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 33}, r"rgb patches of 8 pixels; try \(32, 32\)"),
        ({"image_size": (32, 30)}, r"try \(32, 32\)"),
        ({"patch_size": 10, "image_size": 20}, "semseg patches of 8 pixels"),
        ({"keep": 49}, r"keep = 49 must lie in 1..48"),
        ({"keep": 0}, "keep = 0"),
        ({"heads": 5}, "heads = 5 does not divide width = 24; try 4"),
        ({"decoder_heads": 3}, "decoder_heads = 3 does not divide decoder_width = 16; try 2"),
        ({"width": 30, "heads": 3}, "width = 30 must be a multiple of 4.*try 32"),
        ({"inputs": ("rgb", "deph")}, "unknown modality 'deph'; did you mean 'depth'"),
        ({"inputs": ("rgb", "norm_rgb")}, "put 'rgb' among the inputs instead"),
        ({"inputs": ()}, "at least one"),
        ({"outputs": ("rgb", "rgb")}, "each one once"),
        ({"alphas": {"rgb": 1.0, "sound": 2.0}}, "alphas names 'sound'"),
        ({"alphas": 0.0}, "must be above 0"),
        ({"alphas": {"rgb": 1.0}, "faithful": True, "position_size": 32}, "give all of rgb, depth, semseg"),
        ({"position_size": 32}, "set faithful = true"),
        ({"drop_path": 1.0}, "drop_path = 1.0"),
        ({"depth": -1}, "depth = -1 is too small; use 0 or more"),
        ({"fp32_outputs": ("semsig",)}, "did you mean 'semseg'"),
    ],
)
def test_mistakes_are_one_line_with_the_fix(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        small_config(**changes)
    assert "\n" not in str(error.value)


def test_alphas_belong_to_names_by_default_and_to_positions_when_faithful():
    alphas = {"semseg": 3.0, "rgb": 2.0, "depth": 0.5}
    assert small_config(alphas=alphas).concentrations == (2.0, 0.5, 3.0)
    assert small_config(alphas={"depth": 0.5}).concentrations == (1.0, 0.5, 1.0)
    assert small_config(alphas=alphas, faithful=True, position_size=32).concentrations == (3.0, 2.0, 0.5)
