"""Released state dicts to ours and back: names, shapes, the order inside rows, resampled tables, errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from omnitrunk.models import MODALITIES, MultiMAE, MultiMAEConfig
from omnitrunk.models.official.state_dicts import from_official, layout, to_official

FIXTURES = Path(__file__).parents[1] / "fixtures" / "multimae"
CASE_A = MultiMAEConfig(
    faithful=True,
    image_size=64,
    position_size=64,
    width=64,
    depth=2,
    heads=4,
    decoder_width=32,
    decoder_depth=1,
    decoder_heads=4,
    semseg_classes=10,
    class_embedding_width=16,
    keep=8,
)
SMALL = MultiMAEConfig(
    faithful=True,
    inputs=("depth", "semseg"),
    outputs=("norm_rgb", "semseg"),
    image_size=(48, 32),
    position_size=(64, 48),
    patch_size=8,
    width=24,
    depth=1,
    heads=2,
    mlp_ratio=1.5,
    global_tokens=3,
    decoder_width=12,
    decoder_depth=2,
    decoder_heads=3,
    semseg_classes=5,
    class_embedding_width=6,
    keep=7,
)


def random_state(config: MultiMAEConfig, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    for part in layout(config):
        shapes.setdefault(part.official, part.shape)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_released_weights_survive_the_round_trip():
    state = load_file(FIXTURES / "case_a_weights.safetensors")
    ours = from_official(state, CASE_A)
    MultiMAE(CASE_A).load_state_dict(ours)
    assert_same(to_official(ours, CASE_A), state)


@pytest.mark.parametrize("config", [CASE_A, SMALL])
def test_our_weights_survive_the_round_trip(config, seed):
    state = MultiMAE(config, seed).state_dict()
    assert_same(from_official(to_official(state, config), config), dict(state))
    official = random_state(config, seed)
    assert_same(to_official(from_official(official, config), config), official)


def test_the_published_model_has_its_351_tensors():
    shapes = {part.official: part.shape for part in layout(MultiMAEConfig(faithful=True))}
    assert len(shapes) == 351
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 97_917_072 + 652_288
    assert shapes["input_adapters.semseg.proj.weight"] == (768, 64, 4, 4)
    assert shapes["output_adapters.semseg.out_proj.weight"] == (2128, 256)
    assert shapes["output_adapters.norm_rgb.pos_emb"] == (1, 256, 14, 14)


def test_projections_equal_the_released_convolutions(seed):
    official = random_state(SMALL, seed)
    ours = from_official(official, SMALL)
    for name, side, channels in (("depth", 8, 1), ("semseg", 2, SMALL.class_embedding_width)):
        patch = torch.randn(side, side, channels)
        kernel = official[f"input_adapters.{name}.proj.weight"]
        expected = functional.conv2d(patch.permute(2, 0, 1)[None], kernel).flatten()
        torch.testing.assert_close(ours[f"tokenizers.{name}.weight"] @ patch.flatten(), expected, rtol=1e-4, atol=1e-4)


def test_output_rows_are_row_column_channel(seed):
    official = random_state(SMALL, seed)
    ours = from_official(official, SMALL)
    bias = official["output_adapters.norm_rgb.out_proj.bias"].unflatten(0, (3, 8, 8))
    assert torch.equal(ours["decoders.norm_rgb.out.bias"].unflatten(0, (8, 8, 3)), bias.permute(1, 2, 0))


def test_stacked_parts_keep_the_order_of_the_config(seed):
    official = random_state(SMALL, seed)
    ours = from_official(official, SMALL)
    context = [official[f"output_adapters.{output}.proj_context.weight"] for output in ("norm_rgb", "semseg")]
    assert torch.equal(ours["context.weight"], torch.cat(context))
    embeddings = [official[f"output_adapters.semseg.task_embeddings.{name}"].flatten() for name in ("depth", "semseg")]
    assert torch.equal(ours["decoders.semseg.task_embedding"], torch.stack(embeddings))


def test_tables_of_another_grid_are_resampled_as_the_release_does(seed):
    official = random_state(SMALL, seed)
    table = torch.randn(1, SMALL.width, 14, 14)
    for name, mode in (("depth", "bicubic"), ("semseg", "bilinear")):
        ours = from_official({**official, f"input_adapters.{name}.pos_emb": table}, SMALL)
        expected = functional.interpolate(table, size=(8, 6), mode=mode, align_corners=False)
        torch.testing.assert_close(ours[f"tokenizers.{name}.position"], expected[0].flatten(1).T)


def test_inputs_of_another_grid_take_their_positions_from_the_decoders_one_table(seed):
    coarse = replace(MODALITIES["depth"], name="coarse", stride=32)
    with mock.patch.dict(MODALITIES, {"coarse": coarse}):
        config = replace(SMALL, inputs=("semseg", "coarse"), image_size=64, position_size=64)
        official = random_state(config, seed)
        ours = from_official(official, config)
        MultiMAE(config).load_state_dict(ours)
        table = official["output_adapters.semseg.pos_emb"]
        expected = functional.interpolate(table, size=(2, 2), mode="bilinear", align_corners=False)
        torch.testing.assert_close(ours["decoders.semseg.context_position"][-4:], expected[0].flatten(1).T)
        assert_same(to_official(ours, config), official)
        ours["decoders.semseg.context_position"] += 1
        with pytest.raises(ValueError, match=r"context_position must follow from output_adapters\.semseg"):
            to_official(ours, config)


@pytest.mark.parametrize("convert", [from_official, to_official])
def test_errors_name_the_key(convert, seed):
    official = random_state(SMALL, seed)
    state = official if convert is from_official else from_official(official, SMALL)
    key = list(state)[seed % len(state)]
    without = {name: value for name, value in state.items() if name != key}
    with pytest.raises(ValueError, match=f"lacks '{key}'"):
        convert(without, SMALL)
    with pytest.raises(ValueError, match="unexpected 'stranger'"):
        convert({**state, "stranger": torch.zeros(1)}, SMALL)
    with pytest.raises(ValueError, match=f"{key} has the shape"):
        convert({**state, key: state[key].repeat(2, *[1] * (state[key].ndim - 1))}, SMALL)
