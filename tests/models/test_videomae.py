from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.models import MaskedAutoencoder, VideoMAEConfig
from omnitrunk.models.modality import IMAGENET_MEAN, IMAGENET_STD
from tests.models.slow_autoencoder import slow_videomae_loss
from tests.models.small_autoencoders import (
    assert_same_loss_and_gradients,
    bytes_batch,
    double_autoencoder,
    small_videomae,
)

CASES = {
    "default": {},
    "square, longer cubes": {"image_size": 16, "tubelet": 3, "mask_ratio": 0.5},
    "pixels as they are": {"standardize_targets": False},
    "one block each": {"depth": 1, "decoder_depth": 1, "mlp_ratio": 3.0},
    "no blocks": {"depth": 0, "decoder_depth": 0},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_loss_and_gradients_equal_the_slow_computation(changes, seed):
    config = small_videomae(**changes)
    model, batch = double_autoencoder(config, seed), bytes_batch(config, 3, seed)
    plan = model.plan(seed, np.arange(3))
    losses = model(batch, plan)
    assert set(losses) == {config.outputs[0], "loss"}
    assert_same_loss_and_gradients(model, losses["loss"], slow_videomae_loss(model, batch["video"], plan.keep))


def test_defaults_are_the_published_base_model():
    config = VideoMAEConfig()
    assert (config.total_tokens, config.keep, config.grid) == (1568, 160, (8, 14, 14))
    model = MaskedAutoencoder(VideoMAEConfig(depth=1, decoder_depth=1))
    blocks, decoder_blocks = (
        sum(parameter.numel() for parameter in stack.parameters()) for stack in (model.blocks, model.decoder.blocks)
    )
    total = sum(parameter.numel() for parameter in model.parameters()) + 11 * blocks + 3 * decoder_blocks
    assert round(total / 1e6, 2) == 94.21


def test_all_slices_of_a_clip_share_one_pattern(seed):
    config = small_videomae()
    plan = MaskedAutoencoder(config, seed).plan(seed, np.arange(5, 13))
    slices = plan.mask.unflatten(1, (3, 6))
    assert torch.equal(slices, slices[:, :1].expand_as(slices)) and (slices.sum(2) == 3).all()
    assert len({tuple(pattern.tolist()) for pattern in slices[:, 0]}) > 1
    assert torch.equal(plan.keep, plan.keep.sort(dim=1).values)


def test_masked_cubes_are_predicted_and_visible_ones_are_not(seed):
    config = small_videomae()
    model, batch = double_autoencoder(config, seed), bytes_batch(config, 3, seed)
    plan, sample = model.plan(seed, np.arange(3)), model.prepare(batch)
    prediction = model.predict(batch, plan)["norm_video"]
    assert prediction.shape == (3, 18, 2 * 8 * 8 * 3)
    assert torch.equal(prediction.isnan().all(dim=2), ~plan.mask) and prediction[plan.mask].isfinite().all()
    scored = model.decoder(model.encode_tokens(sample, plan.keep, norm=model.norm), sample, plan)
    torch.testing.assert_close(scored, prediction[plan.mask])


def test_normalized_clips_give_the_same_loss_and_constant_cubes_are_zero(seed):
    config = small_videomae()
    model, batch = double_autoencoder(config, seed), bytes_batch(config, 2, seed)
    plan = model.plan(seed, np.arange(2))
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (IMAGENET_MEAN, IMAGENET_STD))
    floating = {"video": (batch["video"].double() / 255 - mean) / std}
    torch.testing.assert_close(model(floating, plan), model(batch, plan), rtol=1e-6, atol=1e-6)
    constant = {"video": torch.full_like(floating["video"], 0.3)}
    assert model.objective.target(model.prepare(constant), plan.masked).abs().max() < 1e-6


def test_targets_are_standardized_by_channel_with_epsilon_outside_of_the_root(seed):
    config = small_videomae()
    model, plan = MaskedAutoencoder(config, seed), MaskedAutoencoder(config, seed).plan(seed, np.arange(2))
    faint = torch.randn(2, *config.clip_shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    faint = 1e-5 * faint + torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    target = model.objective.target({"video": faint}, plan.masked).unflatten(1, (-1, 3))
    shown = faint * torch.tensor(IMAGENET_STD).double() + torch.tensor(IMAGENET_MEAN).double()
    cube = shown.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).unflatten(1, (-1, 2)).permute(0, 1, 3, 5, 2, 4, 6, 7)
    values = cube.flatten(4, 6).flatten(1, 3)[plan.mask]
    expected = (values - values.mean(1, keepdim=True)) / (values.std(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(target, expected, rtol=1e-6, atol=1e-6)


def test_features_average_all_cubes(seed):
    config = small_videomae()
    model, batch = double_autoencoder(config, seed), bytes_batch(config, 2, seed)
    encoded = model.encode(batch)
    assert encoded.shape == (2, 18, 24)
    torch.testing.assert_close(model.features(batch), encoded.mean(1))


def test_split_biases_and_tokens_do_not_decay(seed):
    groups = MaskedAutoencoder(small_videomae(), seed).parameter_groups(0.05)
    spared = set(groups[1]["names"])
    assert {"blocks.0.attn.qkv.q_bias", "decoder.blocks.1.attn.qkv.v_bias", "decoder.mask_token"} <= spared
    assert "decoder.embed.weight" in groups[0]["names"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 7}, r"= \(7, 16, 24\) does not divide into cubes of \(2, 8, 8\) pixels; try \(8, 16, 24\)"),
        ({"tubelet": 0}, "tubelet = 0 is too small"),
        ({"mask_ratio": 0.1}, "leaves 18 of 18 tokens visible"),
        ({"mask_ratio": -0.5}, "mask_ratio = -0.5 must lie in 0..1"),
    ],
)
def test_mistakes_are_one_line_with_the_fix(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        small_videomae(**changes)
    assert "\n" not in str(error.value)
