from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.models import MAEConfig, MaskedAutoencoder, make_token_plan
from omnitrunk.models.modality import IMAGENET_MEAN, IMAGENET_STD
from tests.models.slow_autoencoder import slow_mae_loss
from tests.models.small_autoencoders import assert_same_loss_and_gradients, bytes_batch, double_autoencoder, small_mae

CASES = {
    "default": {},
    "faithful": {"faithful": True},
    "not square": {"image_size": (24, 40), "mask_ratio": 0.5},
    "pixels as they are": {"standardize_targets": False},
    "one block each": {"depth": 1, "decoder_depth": 1, "mlp_ratio": 3.0},
    "no blocks": {"depth": 0, "decoder_depth": 0},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_loss_and_gradients_equal_the_slow_computation(changes, seed):
    config = small_mae(**changes)
    model, batch = double_autoencoder(config, seed), bytes_batch(config, 3, seed)
    plan = model.plan(seed, np.arange(3))
    losses = model(batch, plan)
    assert set(losses) == {config.outputs[0], "loss"}
    assert_same_loss_and_gradients(model, losses["loss"], slow_mae_loss(model, batch["rgb"], plan.keep))


def test_defaults_are_the_published_base_model():
    assert (MAEConfig().total_tokens, MAEConfig().keep, MAEConfig(mask_ratio=0.4).keep) == (196, 49, 117)
    model = MaskedAutoencoder(MAEConfig(depth=1, decoder_depth=1))
    block = sum(parameter.numel() for parameter in model.blocks.parameters())
    decoder_block = sum(parameter.numel() for parameter in model.decoder.blocks.parameters())
    total = sum(parameter.numel() for parameter in model.parameters()) + 11 * block + 7 * decoder_block
    assert total == 111_655_680


def test_normalized_pixels_are_taken_as_they_are(seed):
    config = small_mae()
    model, batch = double_autoencoder(config, seed), bytes_batch(config, 2, seed)
    plan = model.plan(seed, np.arange(2))
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (IMAGENET_MEAN, IMAGENET_STD))
    floating = {"rgb": (batch["rgb"].double() / 255 - mean) / std}
    torch.testing.assert_close(model(floating, plan), model(batch, plan), rtol=1e-9, atol=1e-9)


def test_predictions_of_masked_patches_are_what_the_loss_sees(seed):
    config = small_mae(standardize_targets=False)
    model, batch = double_autoencoder(config, seed), bytes_batch(config, 3, seed)
    plan = model.plan(seed, np.arange(3))
    prediction = model.predict(batch, plan)["rgb"]
    assert prediction.shape == (3, 16, 192) and prediction.isfinite().all()
    sample = model.prepare(batch)
    scored = model.decoder(model.encode_tokens(sample, plan.keep, norm=model.norm), sample, plan)
    torch.testing.assert_close(scored, prediction[plan.mask])


def test_order_of_the_visible_patches_does_not_matter(seed):
    config = small_mae(faithful=True)
    model, batch = double_autoencoder(config, seed), bytes_batch(config, 3, seed)
    plan = model.plan(seed, np.arange(3))
    ascending = make_token_plan(plan.keep.sort(dim=1).values, config.total_tokens)
    assert not torch.equal(plan.keep, ascending.keep)
    torch.testing.assert_close(model(batch, plan), model(batch, ascending), rtol=1e-9, atol=1e-9)


def test_features_average_the_normed_encodings_of_all_patches(seed):
    config = small_mae()
    model, batch = double_autoencoder(config, seed), bytes_batch(config, 2, seed)
    encoded = model.encode(batch)
    assert encoded.shape == (2, 17, 24)
    torch.testing.assert_close(model.features(batch, ("rgb",)), encoded[:, 1:].mean(1))
    everything = torch.arange(16).expand(2, -1).flip(1)
    flipped = model.encode_tokens(model.prepare(batch), everything, norm=model.norm)
    torch.testing.assert_close(flipped[:, 1:].flip(1), encoded[:, 1:])
    with pytest.raises(ValueError, match="'depth' is no input of this model; choose 'rgb'"):
        model.features(batch, ("depth",))


def test_class_and_mask_token_decay_only_when_faithful(seed):
    def spared(faithful):
        groups = MaskedAutoencoder(small_mae(faithful=faithful), seed).parameter_groups(0.05)
        assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
        return set(groups[1]["names"])

    tokens = {"class_token", "decoder.mask_token"}
    assert tokens <= spared(False) and spared(False) - spared(True) == tokens
    assert "norm.weight" in spared(True) and "decoder.blocks.0.attn.qkv.bias" in spared(True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 33}, r"image_size = \(33, 33\) does not divide into patches of 8 pixels; try \(32, 32\)"),
        ({"mask_ratio": 1.0}, "mask_ratio = 1.0 must lie in 0..1"),
        ({"mask_ratio": 0.0}, "leaves 16 of 16 tokens visible; choose one that leaves and masks at least one"),
        ({"mask_ratio": 0.99}, "leaves 0 of 16"),
        ({"decoder_drop_path": -0.1}, "decoder_drop_path = -0.1"),
        ({"patch_size": 0}, "patch_size = 0 is too small"),
        ({"decoder_depth": -1}, "decoder_depth = -1 is too small"),
        ({"heads": 5}, "heads = 5 does not divide width = 24; try 4"),
        ({"decoder_width": 18}, "decoder_width = 18 must be a multiple of 4"),
    ],
)
def test_mistakes_are_one_line_with_the_fix(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        small_mae(**changes)
    assert "\n" not in str(error.value)


def test_a_batch_that_does_not_fit_is_refused(seed):
    model = MaskedAutoencoder(small_mae(), seed)
    with pytest.raises(ValueError, match="the batch has no 'rgb'"):
        model.prepare({"depth": torch.zeros(2, 32, 32, 1)})
    with pytest.raises(ValueError, match=r"rgb is \(16, 32\); the model takes \(32, 32\)"):
        model.prepare({"rgb": torch.zeros(2, 16, 32, 3)})
