"""Released state dicts of MAE and VideoMAE to ours and back."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from omnitrunk.models import MAEConfig, MaskedAutoencoder, VideoMAEConfig
from omnitrunk.models.layers.positions import interpolate
from omnitrunk.models.official.parts import Part
from omnitrunk.models.official.state_dicts import from_official, layout, to_official
from tests.models.small_autoencoders import small_mae, small_videomae

SMALL = {"mae": small_mae(), "videomae": small_videomae()}


def random_state(config, seed):
    """A released state dict of these sizes; the class token's row of the encoder's table is 0."""
    generator = torch.Generator().manual_seed(seed)
    parts = [part for part in layout(config) if isinstance(part, Part)]
    state = {part.official: torch.randn(part.shape, generator=generator) for part in parts}
    if "pos_embed" in state:
        state["pos_embed"][:, 0] = 0
    return state


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], value) for name, value in expected.items())


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())
def test_round_trips_lose_nothing(config, seed):
    official = random_state(config, seed)
    ours = from_official(official, config)
    MaskedAutoencoder(config).load_state_dict(ours)
    assert_same(to_official(ours, config), official)
    state = MaskedAutoencoder(config, seed).state_dict()
    assert_same(from_official(to_official(state, config), config), dict(state))


def test_published_models_have_their_tensors():
    shapes = {part.official: part.shape for part in layout(MAEConfig())}
    assert len(shapes) == 12 * 12 + 8 * 12 + 14 and shapes["pos_embed"] == (1, 197, 768)
    assert shapes["decoder_pred.weight"] == (768, 512) and shapes["patch_embed.proj.weight"] == (768, 3, 16, 16)
    shapes = {part.official: part.shape for part in layout(VideoMAEConfig()) if isinstance(part, Part)}
    assert len(shapes) == 218 and shapes["encoder.patch_embed.proj.weight"] == (768, 3, 2, 16, 16)
    assert shapes["decoder.blocks.3.attn.q_bias"] == (384,) and shapes["decoder.head.weight"] == (1536, 384)


@pytest.mark.parametrize("name", SMALL)
def test_projections_equal_the_released_convolutions(name, seed):
    config = SMALL[name]
    official = random_state(config, seed)
    key, convolve, cube = {
        "mae": ("patch_embed.proj.weight", functional.conv2d, (8, 8)),
        "videomae": ("encoder.patch_embed.proj.weight", functional.conv3d, (2, 8, 8)),
    }[name]
    patch = torch.randn(*cube, 3, generator=torch.Generator().manual_seed(seed))
    expected = convolve(patch.movedim(-1, 0)[None], official[key]).flatten()
    ours = from_official(official, config)["tokenizer.weight"] @ patch.flatten()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_tables_of_another_square_are_resampled(seed):
    config = small_mae()
    official = random_state(config, seed)
    table = torch.randn(1, 1 + 49, 24, generator=torch.Generator().manual_seed(seed))
    table[:, 0] = 0
    ours = from_official({**official, "pos_embed": table}, config)["tokenizer.position"]
    torch.testing.assert_close(ours, interpolate(table[0, 1:], (7, 7), (4, 4), "bicubic"))
    with pytest.raises(ValueError, match="pos_embed has the shape"):
        from_official({**official, "pos_embed": table[:, :-1]}, config)


def test_a_table_that_the_release_could_not_compute_is_refused(seed):
    config = small_videomae()
    state = from_official(random_state(config, seed), config)
    state["tokenizer.position"] = state["tokenizer.position"] + 1
    with pytest.raises(ValueError, match=r"tokenizer\.position is not the table that the release computes"):
        to_official(state, config)


def test_a_position_of_the_class_token_is_refused(seed):
    official = random_state(small_mae(), seed)
    official["pos_embed"][0, 0, 3] = 0.1
    with pytest.raises(ValueError, match="pos_embed moves the class token"):
        from_official(official, small_mae())


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())
@pytest.mark.parametrize("convert", [from_official, to_official])
def test_errors_name_the_key(convert, config, seed):
    official = random_state(config, seed)
    state = official if convert is from_official else from_official(official, config)
    for key in (list(state)[seed % len(state)], *(key for key in state if "position" in key)):
        with pytest.raises(ValueError, match=f"lacks '{key}'"):
            convert({name: value for name, value in state.items() if name != key}, config)
    with pytest.raises(ValueError, match="unexpected 'stranger'"):
        convert({**state, "stranger": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match=r"decoder.* has the shape"):
        key = next(key for key in state if key.startswith("decoder") and key.endswith("weight"))
        convert({**state, key: state[key].repeat(2, *[1] * (state[key].ndim - 1))}, config)
