"""Files' state dicts through a layout: prefixes, decoders, allowed keys, resized tables, M2PT's joined layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnitrunk.models import Classifier, ClassifierConfig, build_model
from omnitrunk.models.audiomae import AudioMAEConfig
from omnitrunk.models.layers.positions import interpolate
from omnitrunk.models.official import m2pt, timm
from omnitrunk.models.official.parts import Part, SequenceTable
from omnitrunk.models.official.state_dicts import layout
from omnitrunk.models.official.transfer import from_release, to_release
from omnitrunk.models.pathway import PathwayConfig, join, merge
from tests.models.small_audiomae import small_audiomae
from tests.models.small_autoencoders import small_mae, small_videomae
from tests.models.small_pointmae import small_pointmae
from tests.models.test_official import SMALL as SMALL_MULTIMAE

CONFIGS = {
    "multimae": SMALL_MULTIMAE,
    "mae": small_mae(),
    "videomae": small_videomae(),
    "audiomae": small_audiomae(faithful=True),
    "pointmae": small_pointmae(),
    "classifier": ClassifierConfig(encoder={"system": "videomae", **vars(small_videomae())}, classes=5),
}
DECODERS = ("decoder.", "decoders.", "context.")
M2PT = Path(__file__).parents[1] / "fixtures" / "m2pt"


def official_state(parts, seed):
    """Random tensors under the release's names; the class token has no position where ours has no place for it."""
    generator, parts = torch.Generator().manual_seed(seed), [part for part in parts if isinstance(part, Part)]
    shapes = {part.official: part.shape for part in parts}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for part in parts:
        if isinstance(part, SequenceTable) and not part.class_row:
            state[part.official][:, 0] = 0
    return state


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_everything_is_used_both_ways_and_nothing_changes(name, seed):
    config = CONFIGS[name]
    state = official_state(layout(config), seed)
    ours, account = from_release(state, layout(config))
    build_model(config, 0).load_state_dict(ours)
    assert account.used.keys() == state.keys() and not (account.dropped or account.absent or account.resized)
    assert {made for names in account.used.values() for made in names} <= ours.keys()
    back, account = to_release(ours, layout(config))
    assert_same(back, state)
    assert account.used.keys() | account.dropped.keys() == ours.keys()
    assert set(account.dropped.values()) <= {"the release computes it"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "backbone."])
@pytest.mark.parametrize("name", CONFIGS)
def test_prefixes_of_wrappers_are_seen_through(name, prefix, seed):
    state = official_state(layout(CONFIGS[name]), seed)
    wrapped = {prefix + key: value for key, value in state.items()}
    ours, account = from_release(wrapped, layout(CONFIGS[name]))
    assert_same(ours, from_release(state, layout(CONFIGS[name]))[0])
    assert account.used.keys() == wrapped.keys() and "was read as" in account.notes[0]


def test_encoders_without_the_prefix_of_their_release_fit(seed):
    for config, prefix in ((CONFIGS["videomae"], "encoder."), (CONFIGS["pointmae"], "MAE_encoder.")):
        state = official_state(layout(config), seed)
        encoder = {key: value for key, value in state.items() if key.startswith(prefix)}
        bare = {key.removeprefix(prefix): value for key, value in encoder.items()}
        assert_same(from_release(bare, layout(config))[0], from_release(encoder, layout(config))[0])


def test_a_key_that_is_there_twice_is_an_error(seed):
    state = official_state(layout(CONFIGS["mae"]), seed)
    with pytest.raises(ValueError, match=r"'norm.weight' and 'module.norm.weight' are both 'norm.weight'"):
        from_release({**state, "module.norm.weight": state["norm.weight"]}, layout(CONFIGS["mae"]))


@pytest.mark.parametrize("name", ["multimae", "mae", "videomae", "audiomae", "pointmae"])
def test_the_decoder_is_whole_or_absent(name, seed):
    config = CONFIGS[name]
    state = official_state(layout(config), seed)
    whole, _ = from_release(state, layout(config))
    ours, account = from_release(state, layout(config), encoder_only=True)
    assert_same(ours, {key: value for key, value in whole.items() if not key.startswith(DECODERS)})
    assert set(account.dropped.values()) == {"only the encoder is wanted"}
    assert account.used.keys() | account.dropped.keys() == state.keys()
    encoder = {key: value for key, value in state.items() if key in account.used}
    again, account = from_release(encoder, layout(config))
    assert_same(again, ours)
    assert account.notes[0].startswith("the file is an encoder's")
    assert_same(to_release(ours, layout(config))[0], encoder)
    one = next(key for key in state if key not in encoder)
    with pytest.raises(ValueError, match="lacks "):
        from_release({**encoder, one: state[one]}, layout(config))


@pytest.mark.parametrize("name", CONFIGS)
def test_left_over_missing_and_misshapen_keys_are_named(name, seed):
    config = CONFIGS[name]
    for convert, state in (
        (from_release, official_state(layout(config), seed)),
        (to_release, build_model(config, seed).state_dict()),
    ):
        key = next(key for key in state if key.endswith("mlp.fc2.bias"))
        without = {other: value for other, value in state.items() if other != key}
        with pytest.raises(ValueError, match=f"lacks '{key}', the nearest is '{key}s'"):
            convert({**without, f"{key}s": state[key]}, layout(config))
        with pytest.raises(ValueError, match=f"unexpected '{key}s', the nearest is '{key}'"):
            convert({**state, f"{key}s": state[key]}, layout(config))
        with pytest.raises(ValueError, match=rf"{key} has the shape \(1, "):
            convert({**state, key: state[key][None]}, layout(config))


def test_patterns_allow_what_is_left_over_and_what_is_missing(seed):
    config = CONFIGS["mae"]
    state = official_state(layout(config), seed)
    del state["decoder_pred.bias"]
    stray = {"head.weight": torch.ones(2), "head.bias": torch.ones(2)}
    patterns = ("head.*", "decoder_pred.b*", "tail")
    ours, account = from_release({**state, **stray}, layout(config), allow=patterns)
    assert account.dropped == dict.fromkeys(stray, "allowed") and account.absent == {"decoder_pred.bias": "allowed"}
    assert account.notes == ["'tail' allowed nothing"]
    assert "decoder.out.bias" not in ours and "decoder.out.weight" in ours
    assert_same(to_release(ours, layout(config), allow=["decoder.out.bias"])[0], state)


def test_what_is_made_of_several_keys_is_left_out_as_a_whole(seed):
    state = official_state(layout(SMALL_MULTIMAE), seed)
    key = "output_adapters.semseg.proj_context.weight"
    del state[key]
    ours, account = from_release(state, layout(SMALL_MULTIMAE), allow=[key])
    assert "context.weight" not in ours and "context.bias" in ours
    partner = "output_adapters.norm_rgb.proj_context.weight"
    assert account.absent == {key: "allowed"} and account.dropped == {partner: "its counterparts are absent"}


def test_resized_tables_are_named_with_both_grids(seed):
    config = CONFIGS["mae"]
    state = official_state(layout(config), seed)
    table = torch.randn(1, 1 + 36, 24, generator=torch.Generator().manual_seed(seed))
    table[:, 0] = 0
    ours, account = from_release({**state, "pos_embed": table}, layout(config))
    assert account.resized == {"pos_embed": ((6, 6), (4, 4))}
    torch.testing.assert_close(ours["tokenizer.position"], interpolate(table[0, 1:], (6, 6), (4, 4), "bicubic"))
    half, _ = from_release({**state, "pos_embed": table.half()}, layout(config))
    assert half["tokenizer.position"].dtype == torch.float16
    state = official_state(layout(SMALL_MULTIMAE), seed)
    key = "input_adapters.depth.pos_emb"
    _, account = from_release({**state, key: torch.randn(1, 24, 5, 7)}, layout(SMALL_MULTIMAE))
    assert account.resized == {key: ((5, 7), (8, 6))}
    state = official_state(layout(CONFIGS["audiomae"]), seed)
    with pytest.raises(ValueError, match="pos_embed has the shape"):
        from_release({**state, "pos_embed": torch.randn(1, 1 + 64, 24)}, layout(CONFIGS["audiomae"]))


def test_a_position_of_the_class_token_moves_into_the_token_or_a_tensor_of_its_own(seed):
    encoder = {"system": "mae", **vars(small_mae())}
    fixed, trained = (ClassifierConfig(encoder=encoder, classes=5, train_positions=train) for train in (False, True))
    state = official_state(layout(fixed), seed)
    state["pos_embed"] = torch.randn(1, 17, 24, generator=torch.Generator().manual_seed(seed))
    pair, _ = from_release(state, layout(trained))
    assert torch.equal(pair["class_position"], state["pos_embed"][0, 0])
    assert_same(to_release(pair, layout(trained))[0], state)
    one, account = from_release(state, layout(fixed))
    assert account.notes == ["the class token's row of pos_embed was added to cls_token"]
    models = {config.train_positions: build_model(config, 0) for config in (fixed, trained)}
    models[True].load_state_dict(pair)
    models[False].load_state_dict(one)
    batch = {"rgb": torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)}
    assert torch.equal(models[True].logits(batch), models[False].logits(batch))


def test_a_released_m2pt_is_a_joined_classifier():
    state = load_file(M2PT / "vit_a_weights.safetensors")
    encoder = {"system": "mae", "image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "heads": 4}
    config = ClassifierConfig(encoder=encoder, classes=7, train_positions=True)
    ours, account = from_release(state, m2pt.layout(config))
    assert account.used.keys() == state.keys()
    model = Classifier(config)
    join(model.blocks, [model.blocks.state_dict()], PathwayConfig())
    model.load_state_dict(ours)
    io = load_file(M2PT / "vit_a_io.safetensors")
    batch = {"rgb": io["image"].permute(0, 2, 3, 1).contiguous()}
    torch.testing.assert_close(model.logits(batch), io["logits"], rtol=1e-5, atol=1e-5)
    plain = Classifier(config)
    plain.load_state_dict(merge(ours))
    torch.testing.assert_close(plain.logits(batch), io["logits_merged"], rtol=1e-5, atol=1e-5)
    assert_same(to_release(ours, m2pt.layout(config))[0], state)


def test_m2pt_joins_the_layers_that_it_is_told(seed):
    config = replace(CONFIGS["classifier"], encoder={"system": "mae", **vars(small_mae())})
    names = [part.official for part in m2pt.layout(config, ("fc1",)) if "aux_weight" in part.official]
    assert names == ["blocks.0.mlp.fc1.aux_weight", "blocks.1.mlp.fc1.aux_weight"]
    model = Classifier(config, seed)
    join(model.blocks, [model.blocks.state_dict()] * 2, PathwayConfig())
    with pytest.raises(ValueError, match="room for one auxiliary model"):
        m2pt.check_room(model.state_dict())


def test_timm_takes_pictures_and_spectrograms_only():
    assert timm.arguments(AudioMAEConfig())["img_size"] == (1024, 128)
    found = timm.arguments(ClassifierConfig(encoder={"system": "mae", "image_size": (32, 64)}, classes=3))
    assert (found["img_size"], found["num_classes"], found["global_pool"]) == ((32, 64), 3, "avg")
    for name in ("videomae", "pointmae", "multimae"):
        with pytest.raises(ValueError, match=f"no place for a {name}"):
            timm.arguments(CONFIGS[name])
