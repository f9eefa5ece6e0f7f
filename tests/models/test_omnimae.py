from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from omnitrunk.engine.config import RunConfig
from omnitrunk.engine.data import DataConfig
from omnitrunk.engine.log import LogConfig
from omnitrunk.models import MaskedAutoencoder, OmniMAEConfig
from omnitrunk.models.modality import IMAGENET_MEAN, IMAGENET_STD
from omnitrunk.models.official.state_dicts import from_official, to_official
from tests.models.small import lively
from tests.models.small_autoencoders import assert_same_loss_and_gradients
from tests.models.test_flops import assert_counted
from tests.models.test_parity import change
from tests.parity.__main__ import main

FIXTURE = Path(__file__).parents[1] / "fixtures" / "omnimae"


def small_omnimae(**changes):
    sizes = {
        "frames": 6, "image_size": (16, 24), "patch_size": 8, "width": 24, "depth": 2, "heads": 3, "decoder_width": 16,
        "decoder_depth": 2, "decoder_heads": 2, "mask_ratio": 0.6,
    }  # fmt: skip
    return OmniMAEConfig(**{**sizes, **changes})


def double(config, seed):
    return lively(MaskedAutoencoder(config, seed), seed).double()


def pixels_of(config, batch, seed):
    shape = config.clip_shape if config.modality == "video" else config.image_shape
    pixels = torch.randint(0, 256, (batch, *shape, 3), generator=torch.Generator().manual_seed(seed))
    return {config.modality: pixels.to(torch.uint8)}


def slow_loss(model, clips, plan):
    """Of clips in bytes, by convolution, token by token."""
    config, mean, std = model.config, *(torch.tensor(x, dtype=torch.float64) for x in (IMAGENET_MEAN, IMAGENET_STD))
    shown = clips.double() / 255
    kernel = model.tokenizer.weight.unflatten(1, (*config.cube, 3)).permute(0, 4, 1, 2, 3)
    patches = functional.conv3d(((shown - mean) / std).movedim(-1, 1), kernel, model.tokenizer.bias, config.cube)
    tokens = patches.flatten(2).transpose(1, 2)
    count = tokens.shape[1]
    tokens = tokens + model.tokenizer.position[:count]
    rows = torch.arange(len(tokens))[:, None]
    encoded = model.norm(model.blocks(tokens[rows, plan.keep]))
    placed = model.decoder.mask_token.expand(len(tokens), count, -1).clone()
    placed[rows, plan.keep] = encoded
    embedded = model.decoder.embed(placed + model.decoder.position[:count])
    predicted = model.decoder.out(model.decoder.norm(model.decoder.blocks(embedded)))
    t, p, q = config.cube
    cubes = shown.unfold(1, t, t).unfold(2, p, p).unfold(3, q, q)  # (B, time, rows, columns, C, t, p, q)
    cubes = cubes.permute(0, 1, 2, 3, 5, 6, 7, 4).flatten(4, 6).flatten(1, 3)
    over = -2 if config.standardize_channels else (-2, -1)
    variance, average = torch.var_mean(cubes, dim=over, keepdim=True)
    target = ((cubes - average) / (variance + 1e-6).sqrt()).flatten(2)
    return (predicted - target)[rows, plan.masked].square().mean()


CASES = {
    "clips": {},
    "pictures": {"modality": "rgb"},
    "pictures in long cubes": {"modality": "rgb", "tubelet": 3, "standardize_channels": False},
    "no biases in the decoder": {"decoder_qkv_bias": False, "standardize_channels": False},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_loss_and_gradients_equal_the_slow_computation(changes, seed):
    config = small_omnimae(**changes)
    model, batch = double(config, seed), pixels_of(config, 3, seed)
    plan = model.plan(seed, np.arange(3))
    assert plan.keep.shape == (3, config.keep) and plan.masked.shape[1] == int(0.6 * config.total_tokens)
    repeated = batch["video"] if "video" in batch else batch["rgb"][:, None].repeat(1, config.tubelet, 1, 1, 1)
    assert_same_loss_and_gradients(model, model(batch, plan)["loss"], slow_loss(model, repeated, plan))


def test_the_same_weights_serve_both_kinds(seed):
    clips = small_omnimae()
    pictures = replace(clips, modality="rgb")
    model = double(clips, seed)
    other = MaskedAutoencoder(pictures).double()
    other.load_state_dict(model.state_dict())
    batch, plan = pixels_of(pictures, 3, seed), other.plan(seed, np.arange(3))
    torch.testing.assert_close(model(batch, plan)["loss"], other(batch, plan)["loss"], rtol=0, atol=0)
    assert other.features(batch).shape == (3, 24) and other.predict(batch, plan)["norm_rgb"].shape == (3, 6, 384)


@pytest.mark.parametrize("modality", ["rgb", "video"])
def test_flops_are_those_that_torch_counts(modality, seed):
    config = small_omnimae(modality=modality)
    assert_counted(MaskedAutoencoder(config, seed), pixels_of(config, 3, seed), seed)


def test_the_published_base_model_and_its_state_dict(seed):
    assert (OmniMAEConfig().total_tokens, OmniMAEConfig().keep) == (1568, 79)
    assert (OmniMAEConfig(modality="rgb").total_tokens, OmniMAEConfig(modality="rgb", mask_ratio=0.9).keep) == (196, 20)
    config = small_omnimae(decoder_qkv_bias=False)
    state = MaskedAutoencoder(config, seed).state_dict()
    official = to_official(state, config)
    assert "trunk.decoder.decoder_blocks.1.attn.qkv.bias" not in official and "trunk.blocks.1.attn.qkv.bias" in official
    back = from_official(official, config)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "neither rgb nor video"), (("rgb", "video"), "has rgb and video"), (("rgb",), r"takes \(16, 24\)")],
)
def test_batches_that_do_not_fit_are_one_line(names, message, seed):
    config = small_omnimae()
    model = MaskedAutoencoder(config, seed)
    batch = {name: torch.zeros(2, 8, 8, 3) for name in names}
    with pytest.raises(ValueError, match=message):
        model(batch, model.plan(seed, np.arange(2)))
    with pytest.raises(ValueError, match="frames = 5 must be a multiple of tubelet = 2"):
        small_omnimae(frames=5)


def test_reconstructions_of_pictures_are_not_drawn():
    config = small_omnimae(modality="rgb", image_size=24)
    with pytest.raises(ValueError, match=r"log\.images_every = 5: there is nothing to draw of this model; set it to 0"):
        RunConfig(model=config, data=DataConfig(size=24), log=LogConfig(images_every=5))
    clips = replace(config, modality="video")
    RunConfig(model=clips, data=DataConfig(size=24, frames=6), log=LogConfig(images_every=5))


def test_everything_recorded_is_reproduced(tmp_path, capsys):
    folder = Path(shutil.copytree(FIXTURE, tmp_path / "omnimae"))
    assert main(["omnimae", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("0 MISS") and "not covered" not in printed and "video.grad_norms.f64" in printed
    assert main(["omnimae", str(folder), "--float32"]) == 0


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("weights", "trunk.mask_token"),
        ("weights", "trunk.decoder.pos_embed"),
        ("inputs", "image.input"),
        ("outputs", "video.loss_norm_patch.f64"),
        ("outputs", "image.pred"),
    ],
)
def test_a_changed_number_is_a_miss(file, key, tmp_path, capsys):
    folder = Path(shutil.copytree(FIXTURE, tmp_path / "omnimae"))
    change(folder / f"case_a.{file}.safetensors", key, 0.01)
    assert main(["omnimae", str(folder)]) == 1
    assert "MISS" in capsys.readouterr().out
