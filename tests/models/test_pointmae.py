from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.models import MaskedAutoencoder
from omnitrunk.models.masking.token_plan import all_tokens
from omnitrunk.models.official.state_dicts import from_official, layout, to_official
from omnitrunk.models.pointmae import PointMAEConfig
from tests.models.slow_pointmae import slow_pointmae_loss
from tests.models.small_autoencoders import assert_same_loss_and_gradients, double_autoencoder
from tests.models.small_pointmae import clouds, small_pointmae

CASES = {
    "default": {},
    "faithful": {"faithful": True},
    "distances": {"chamfer": "l1"},
    "block": {"mask": "block"},
    "one block each": {"depth": 1, "decoder_depth": 1, "mlp_ratio": 3.0},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_loss_and_gradients_equal_the_slow_computation(changes, seed):
    config = small_pointmae(**changes)
    model, batch = double_autoencoder(config, seed), clouds(config, 3, seed)
    plan = model.plan(seed, np.arange(3))
    losses = model(batch, plan)
    assert set(losses) == {"points", "loss"}
    assert_same_loss_and_gradients(model, losses["loss"], slow_pointmae_loss(model, batch["points"], plan.keep))


def test_defaults_are_the_published_model():
    model = MaskedAutoencoder(PointMAEConfig())
    count = {name: sum(value.numel() for value in part.parameters()) for name, part in model.named_children()}
    assert round(sum(count.values()) / 1e6, 1) == 29.0
    assert round((sum(count.values()) - count["decoder"]) / 1e6, 1) == 21.8
    assert (PointMAEConfig().total_tokens, PointMAEConfig().keep) == (64, 26)
    plan = model.plan(0, np.arange(2))
    assert plan.drop_scale.shape == (24, 2) and plan.decoder_drop_scale.shape == (8, 2)


def test_masks_are_random_subsets_keyed_by_position(seed):
    model = MaskedAutoencoder(small_pointmae(), seed)
    plan = model.plan(seed, np.arange(8))
    assert plan.keep.shape == (8, 4) and plan.masked.shape == (8, 6)
    assert len({tuple(row.tolist()) for row in plan.keep}) > 1
    assert torch.equal(model.plan(seed, np.array([5, 2])).keep, plan.keep[[5, 2]])


def test_a_block_is_what_is_nearest_to_its_center(seed):
    config = small_pointmae(mask="block")
    model, batch = double_autoencoder(config, seed), clouds(config, 4, seed)
    plan, centers = model.plan(seed, np.arange(4)), model.prepare(batch)["centers"]
    distance = (centers - batch["points"][:, :1]).norm(dim=2)
    assert torch.equal(distance[:, 0], torch.zeros(4, dtype=torch.float64))
    nearest = distance.argsort(dim=1)[:, : plan.masked.shape[1]]
    assert torch.equal(nearest.sort(dim=1).values, plan.masked)


def test_masked_groups_are_predicted_and_visible_ones_are_not(seed):
    config = small_pointmae()
    model, batch = double_autoencoder(config, seed).eval(), clouds(config, 3, seed)
    plan = model.plan(seed, np.arange(3))
    prediction = model.predict(batch, plan)["points"]
    assert prediction.shape == (3, 10, 7 * 3)
    assert torch.equal(prediction.isnan().all(dim=2), ~plan.mask)
    groups = model.prepare(batch)["groups"]
    exact = groups[plan.mask].flatten(1)
    assert model.objective(exact, model.prepare(batch), plan.masked) == 0
    shuffled = groups[plan.mask][:, torch.randperm(7)].flatten(1)
    assert model.objective(shuffled, model.prepare(batch), plan.masked) == 0


def test_evaluation_sees_each_cloud_by_itself_and_any_order_of_its_points(seed):
    config = small_pointmae()
    model, batch = double_autoencoder(config, seed), clouds(config, 4, seed)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        features = model.features(batch)
        torch.testing.assert_close(model.features({"points": batch["points"][2:3]}), features[2:3])
        shuffled = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(config.points - 1)])
        torch.testing.assert_close(model.features({"points": batch["points"][:, shuffled]}), features)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_positions_reach_every_block(seed):
    """With branches that add nothing, a stream holds its token and one position for each block."""
    config = small_pointmae(depth=3)
    model, batch = double_autoencoder(config, seed).eval(), clouds(config, 2, seed)
    with torch.no_grad():
        for block in model.blocks:
            for parameter in (*block.attn.proj.parameters(), *block.mlp.fc2.parameters()):
                parameter.zero_()
        sample, everything = model.prepare(batch), all_tokens(2, 10, torch.device("cpu"))
        stream = model.tokenizer(sample, everything) + 3 * model.block_positions(sample, everything)
        torch.testing.assert_close(model.encode(batch), model.norm(stream))


def test_it_trains(seed):
    config = small_pointmae(drop_path=0.1, decoder_drop_path=0.1)
    model = MaskedAutoencoder(config, seed)
    optimizer, losses = torch.optim.AdamW(model.parameter_groups(0.05), lr=2e-3), []
    for step in range(30):
        sphere = torch.randn(8, config.points, 3, generator=torch.Generator().manual_seed(seed + step))
        batch = {"points": sphere / sphere.norm(dim=2, keepdim=True)}
        loss = model(batch, model.plan(seed, np.arange(8 * step, 8 * step + 8)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert model.tokenizer.norm1.num_batches_tracked.item() == 30


def test_only_matrices_decay(seed):
    decayed, spared = (set(group["names"]) for group in MaskedAutoencoder(small_pointmae(), seed).parameter_groups(0.1))
    assert {"tokenizer.fc1.weight", "block_positions.fc2.weight", "decoder.out.weight"} <= decayed
    assert {"tokenizer.norm2.weight", "tokenizer.fc4.bias", "decoder.mask_token", "blocks.0.norm1.weight"} <= spared


def test_initial_values_are_those_of_the_release(seed):
    weights = dict(MaskedAutoencoder(PointMAEConfig(depth=1, decoder_depth=1), seed).named_parameters())
    for name in ("tokenizer.fc3.weight", "block_positions.fc2.weight", "blocks.0.attn.qkv.weight"):
        assert 0.019 < weights[name].std() < 0.021
    assert 0.014 < weights["decoder.mask_token"].std() < 0.026
    bounds = {
        "decoder.blocks.0.attn.qkv.weight": (6 / (4 * 384)) ** 0.5,
        "decoder.positions.fc2.bias": 128**-0.5,
        "decoder.out.weight": 384**-0.5,
    }
    for name, bound in bounds.items():
        assert 0.9 * bound < weights[name].abs().max() <= bound
    assert not weights["tokenizer.fc1.bias"].any() and not weights["decoder.blocks.0.mlp.fc1.bias"].any()


def test_the_count_of_arithmetic_is_that_of_the_products(seed):
    config = small_pointmae()
    decoder = MaskedAutoencoder(config, seed).decoder
    plan = MaskedAutoencoder(config, seed).plan(seed, np.arange(2))
    block, out = 12 * 24**2, 24 * 21
    attention = 2 * 10**2 * 24
    whole = 10 * block + attention
    last = 10 * 3 * 24**2 + attention + 6 * 9 * 24**2
    assert decoder.flops(plan) == 2 * 2 * (whole + last + 6 * out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoder_width": 16}, "decoder_width = 16 differs from width = 24.*set it to 24"),
        ({"points": 9}, "points = 9 is too small; use 10 or more"),
        ({"groups": 1}, "groups = 1 is too small"),
        ({"mask_ratio": 0.05}, "leaves 10 of 10 tokens visible"),
    ],
)
def test_mistakes_are_one_line_with_the_fix(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        small_pointmae(**changes)
    assert "\n" not in str(error.value)


def test_released_weights_go_in_and_come_out(seed):
    config, generator = small_pointmae(), torch.Generator().manual_seed(seed)
    official = {part.official: torch.randn(part.shape, generator=generator) for part in layout(config)}
    for name in official:
        if name.endswith("num_batches_tracked"):
            official[name] = torch.tensor(seed % 1000)
    ours = from_official(official, config)
    model = MaskedAutoencoder(config)
    model.load_state_dict(ours)
    back = to_official(model.state_dict(), config)
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in official.items())
    with pytest.raises(ValueError, match="lacks 'mask_token'"):
        from_official({name: value for name, value in official.items() if name != "mask_token"}, config)


def test_the_published_model_has_its_tensors():
    shapes = {part.official: part.shape for part in layout(PointMAEConfig())}
    assert len(shapes) == 209 and shapes["increase_dim.0.weight"] == (96, 384, 1)
    assert shapes["MAE_encoder.encoder.second_conv.1.running_var"] == (512,)
    assert "MAE_encoder.blocks.blocks.0.attn.qkv.bias" not in shapes
