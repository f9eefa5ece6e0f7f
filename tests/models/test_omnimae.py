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
from omnitrunk.models import OmniMAE, OmniMAEConfig
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
        "decoder_depth": 2, "decoder_heads": 2, "mask_ratio": 0.6, "image_mask_ratio": 0.4,
    }  # fmt: skip
    return OmniMAEConfig(**{**sizes, **changes})


def double(config, seed):
    return lively(OmniMAE(config, seed), seed).double()


def pixels_of(config, batch, seed, name=None):
    name = name or config.modalities[0]
    shape = config.clip_shape if name == "video" else config.image_shape
    pixels = torch.randint(0, 256, (batch, *shape, 3), generator=torch.Generator().manual_seed(seed))
    return {name: pixels.to(torch.uint8)}


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
    "pictures": {"modalities": ("rgb",)},
    "pictures in long cubes": {"modalities": ("rgb",), "tubelet": 3, "standardize_channels": False},
    "no biases in the decoder": {"decoder_qkv_bias": False, "standardize_channels": False},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_loss_and_gradients_equal_the_slow_computation(changes, seed):
    config = small_omnimae(**changes)
    model, batch = double(config, seed), pixels_of(config, 3, seed)
    plan = model.plan(seed, np.arange(3))
    share = 0.6 if config.modalities == ("video",) else 0.4
    assert plan.keep.shape == (3, config.keep) and plan.masked.shape[1] == int(share * config.total_tokens)
    repeated = batch["video"] if "video" in batch else batch["rgb"][:, None].repeat(1, config.tubelet, 1, 1, 1)
    assert_same_loss_and_gradients(model, model(batch, plan)["loss"], slow_loss(model, repeated, plan))


@pytest.mark.parametrize("name", ["rgb", "video"])
def test_a_model_of_both_does_on_each_what_a_model_of_one_does(name, seed):
    both = small_omnimae(modalities=("rgb", "video"))
    alone = replace(both, modalities=(name,))
    model, other = double(both, seed), OmniMAE(alone).double()
    other.load_state_dict(model.state_dict())
    batch, plan = pixels_of(both, 3, seed, name), model.plan(seed, np.arange(3), name)
    assert plan.dataset == name and torch.equal(other.plan(seed, np.arange(3)).keep, plan.keep)
    assert plan.keep.shape[1] == {"rgb": 4, "video": 8}[name] and plan.keep.shape[1] == both.visible(name)
    losses = model(batch, plan)
    assert set(losses) == {name, "loss"} and set(losses) <= {*both.outputs, "loss"}
    torch.testing.assert_close(losses, other(batch, plan), rtol=0, atol=0)
    torch.testing.assert_close(model.features(batch), other.features(batch), rtol=0, atol=0)
    tokens = {"rgb": 6, "video": 18}[name]
    assert model.encode(batch, (name,)).shape == (3, tokens, 24)
    assert model.predict(batch, plan)[f"norm_{name}"].shape == (3, tokens, 384)
    assert model.flops(plan) == other.flops(plan)


def test_a_model_of_both_must_be_told_which(seed):
    config = small_omnimae(modalities=("rgb", "video"))
    model, batch = OmniMAE(config, seed), pixels_of(config, 2, seed, "video")
    assert config.data_sets == {"rgb": ("rgb",), "video": ("video",)} and config.inputs == ("rgb", "video")
    assert (config.total_tokens, config.keep, config.drawn) == (18, 8, False)
    assert not config.idle() and set(small_omnimae().idle()) == {"image_mask_ratio"}
    for call, message in (
        (lambda: model.plan(seed, np.arange(2)), "no data set was named; choose one of rgb, video"),
        (lambda: model.plan(seed, np.arange(2), "depth"), "knows no data set 'depth'"),
        (lambda: model(batch, model.plan(seed, np.arange(2), "rgb")), "the batch has no 'rgb', which its plan is for"),
        (lambda: small_omnimae(modalities=()), "must name rgb, video or both, each once"),
        (lambda: small_omnimae(modalities=("rgb", "rgb")), "must name rgb, video or both, each once"),
        (
            lambda: small_omnimae(modalities=("rgb", "video"), image_mask_ratio=0.1),
            "image_mask_ratio = 0.1 leaves 6 of 6",
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("modality", ["rgb", "video"])
def test_flops_are_those_that_torch_counts(modality, seed):
    config = small_omnimae(modalities=(modality,))
    assert_counted(OmniMAE(config, seed), pixels_of(config, 3, seed), seed)


def test_the_published_base_model_and_its_state_dict(seed):
    assert (OmniMAEConfig().total_tokens, OmniMAEConfig().keep) == (1568, 79)
    assert (OmniMAEConfig(modalities=("rgb",)).total_tokens, OmniMAEConfig(modalities=("rgb",)).keep) == (196, 20)
    config = small_omnimae(decoder_qkv_bias=False)
    state = OmniMAE(config, seed).state_dict()
    official = to_official(state, config)
    assert "trunk.decoder.decoder_blocks.1.attn.qkv.bias" not in official and "trunk.blocks.1.attn.qkv.bias" in official
    back = from_official(official, config)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "the batch has no 'video'"), (("rgb",), "the batch has no 'video'"), (("video",), r"takes \(6, 16, 24\)")],
)
def test_batches_that_do_not_fit_are_one_line(names, message, seed):
    config = small_omnimae()
    model = OmniMAE(config, seed)
    batch = {name: torch.zeros(2, 4, 8, 8, 3) for name in names}
    with pytest.raises(ValueError, match=message):
        model(batch, model.plan(seed, np.arange(2)))
    with pytest.raises(ValueError, match="frames = 5 must be a multiple of tubelet = 2"):
        small_omnimae(frames=5)


def test_reconstructions_of_pictures_are_not_drawn():
    config = small_omnimae(modalities=("rgb",), image_size=24)
    with pytest.raises(ValueError, match=r"log\.images_every = 5: there is nothing to draw of this model; set it to 0"):
        RunConfig(model=config, data=DataConfig(size=24), log=LogConfig(images_every=5))
    clips = replace(config, modalities=("video",))
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
