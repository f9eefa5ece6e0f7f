from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.models import MultiMAE, MultiMAEConfig, make_plan
from tests.models.slow import slow_losses
from tests.models.small import double_batch, double_model, random_batch, random_ids, small_config

CASES = {
    "default": {},
    "non-square, two blocks, two global tokens": {"image_size": (24, 40), "decoder_depth": 2, "global_tokens": 2},
    "no decoder blocks, no global tokens": {"decoder_depth": 0, "global_tokens": 0},
    "no trunk": {"depth": 0},
    "output only": {"inputs": ("rgb", "depth"), "outputs": ("semseg", "norm_rgb"), "keep": 9},
    "output only, its source no input": {"inputs": ("depth",), "outputs": ("norm_rgb", "depth"), "keep": 3},
    "other order": {"inputs": ("semseg", "rgb"), "outputs": ("norm_rgb", "semseg", "rgb"), "keep": 5},
    "visible scored too, smoothed": {"loss_on_unmasked": True, "label_smoothing": 0.1},
    "patches smaller than a class pixel": {"patch_size": 2, "image_size": 8},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_losses_and_gradients_equal_the_slow_computation(changes, seed):
    config = small_config(**changes)
    model, batch = double_model(config, seed), double_batch(random_batch(config, 3, seed))
    ids = random_ids(config, 3, seed)
    losses, expected = model(batch, make_plan(config, ids)), slow_losses(model, batch, ids)
    for output in config.outputs:
        torch.testing.assert_close(losses[output], expected[output], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(losses["loss"], sum(expected.values()), rtol=1e-6, atol=1e-6)
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = torch.autograd.grad(losses["loss"], parameters)
    direct = torch.autograd.grad(sum(expected.values()), parameters, allow_unused=True)
    for name, gradient, reference in zip(names, ours, direct, strict=True):
        reference = torch.zeros_like(gradient) if reference is None else reference
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)


def test_drop_path_scales_the_branches_of_the_slow_computation(seed):
    config = small_config(depth=3, drop_path=0.5)
    model, batch = double_model(config, seed), double_batch(random_batch(config, 4, seed))
    plan = model.plan(seed, np.arange(4))
    expected = slow_losses(model, batch, plan.ids_keep, alive=plan.drop_scale.double())
    torch.testing.assert_close(model(batch, plan)["loss"], sum(expected.values()), rtol=1e-6, atol=1e-6)


def test_fully_visible_samples_are_skipped_with_finite_gradients(seed):
    config = small_config(keep=20)
    model, batch = double_model(config, seed), double_batch(random_batch(config, 2, seed))
    ids = np.stack([np.arange(20), np.arange(0, 40, 2)])  # the first sample sees all of rgb
    losses = model(batch, make_plan(config, ids))
    expected = slow_losses(model, batch, ids)
    torch.testing.assert_close(losses["rgb"], expected["rgb"], rtol=1e-6, atol=1e-6)
    losses["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_nothing_masked_gives_a_zero_that_is_part_of_the_graph(seed):
    config = small_config(keep=48)
    model = MultiMAE(config, seed)
    losses = model(random_batch(config, 2, seed), model.plan(seed, np.arange(2)))
    assert losses["loss"] == 0
    losses["loss"].backward()
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in model.parameters())


def test_a_modality_without_visible_tokens_in_the_whole_batch(seed):
    config = small_config(keep=10)
    model, batch = double_model(config, seed), double_batch(random_batch(config, 2, seed))
    ids = np.stack([np.arange(10), np.arange(5, 15)])  # rgb alone
    losses = model(batch, make_plan(config, ids))
    expected = slow_losses(model, batch, ids)
    torch.testing.assert_close(losses["loss"], sum(expected.values()), rtol=1e-6, atol=1e-6)
    losses["loss"].backward()
    for parameter in model.tokenizers["semseg"].parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_order_of_the_visible_tokens_does_not_matter(seed):
    config = small_config()
    model, batch = double_model(config, seed), double_batch(random_batch(config, 2, seed))
    ids = random_ids(config, 2, seed)
    losses = model(batch, make_plan(config, ids))
    again = model(batch, make_plan(config, np.sort(ids)))
    torch.testing.assert_close(losses, again, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decoder_depth", [0, 1, 2])
def test_predictions_at_scored_rows_are_what_the_loss_sees(decoder_depth, seed):
    config = small_config(decoder_depth=decoder_depth)
    model, batch = double_model(config, seed), double_batch(random_batch(config, 3, seed))
    plan = model.plan(seed, np.arange(3))
    predictions = model.predict(batch, plan)
    context = model.context(model._encode_visible(model.prepare(batch), plan), plan, model.decoders)
    for output, prediction in predictions.items():
        assert prediction.shape == (3, config.tokens(output), config.patch_values(output))
        rows = plan.masked[output]
        scored = model.decoders[output](context[output], plan, rows)
        torch.testing.assert_close(scored, prediction.flatten(0, 1)[rows])


def test_uncertainty_balancer_weighs_all_outputs_but_those_without_loss(seed):
    config = small_config(task_balancer="uncertainty", keep=16, outputs=("rgb", "norm_rgb", "depth"))
    model, batch = double_model(config, seed), double_batch(random_batch(config, 2, seed))
    ids = np.tile(np.arange(16), (2, 1))  # all of rgb is visible: neither rgb nor norm_rgb has a loss
    losses = model(batch, make_plan(config, ids))
    variance = model.balancer[2]
    torch.testing.assert_close(losses["loss"], torch.exp(-variance) * losses["depth"] + variance)
    losses["loss"].backward()
    assert model.balancer.grad[:2].eq(0).all() and model.balancer.grad[2] != 0


def test_encode_sees_every_token_and_features_average_them(seed):
    config = small_config(global_tokens=2)
    model, batch = double_model(config, seed), double_batch(random_batch(config, 3, seed))
    encoded = model.encode(batch)
    assert encoded.shape == (3, 48 + 2, 24)
    plan = make_plan(config, np.tile(np.arange(48), (3, 1)))
    torch.testing.assert_close(encoded, model._encode_visible(model.prepare(batch), plan))
    only = model.encode({"depth": batch["depth"]}, ["depth"])
    assert only.shape == (3, 16 + 2, 24)
    torch.testing.assert_close(model.features(batch, ("depth",)), only.mean(1))


def test_autocast_runs_the_chosen_decoders_in_float32(seed):
    config = small_config()
    model, batch = MultiMAE(config, seed), random_batch(config, 2, seed)
    plan = model.plan(seed, np.arange(2))
    seen = {}
    for output, decoder in model.decoders.items():
        decoder.out.register_forward_hook(lambda _, __, y, output=output: seen.__setitem__(output, y.dtype))
    full = model(batch, plan)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch, plan)
    assert seen == dict.fromkeys(("rgb", "depth", "norm_rgb"), torch.bfloat16) | {"semseg": torch.float32}
    losses["loss"].backward()
    assert losses["loss"].dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(losses, full, rtol=0.02, atol=0.02)


def test_a_state_dict_carries_its_tables(seed):
    config = small_config()
    model, other = MultiMAE(config, seed), MultiMAE(config, seed + 1)
    with torch.no_grad():
        model.tokenizers["rgb"].position.mul_(2)
        model.decoders["depth"].position.mul_(3)
    other.load_state_dict(model.state_dict())
    model.refresh()
    batch, plan = random_batch(config, 2, seed), model.plan(seed, np.arange(2))
    torch.testing.assert_close(other(batch, plan), model(batch, plan), rtol=0, atol=0)


def test_user_mistakes_are_one_line(seed):
    model = MultiMAE(small_config(), seed)
    batch, plan = random_batch(model.config, 2, seed), model.plan(seed, np.arange(2))
    for change, words in (
        ({"rgb": batch["rgb"][:, :16]}, r"rgb is \(16, 32\); the model takes \(32, 32\)"),
        ({"depth": None}, "no 'depth'"),
    ):
        changed = {name: tensor for name, tensor in (batch | change).items() if tensor is not None}
        with pytest.raises(ValueError, match=words):
            model(changed, plan)
    with pytest.raises(ValueError, match="'norm_rgb' is no input"):
        model.encode(batch, ["norm_rgb"])


@pytest.mark.parametrize(
    ("sizes", "count"), [({}, 97_917_072), ({"width": 1024, "depth": 24, "heads": 16}, 315_959_440)]
)
def test_published_models_have_their_published_number_of_parameters(sizes, count, monkeypatch):
    monkeypatch.setattr("omnitrunk.models.multimae.initialize", lambda *_: None)
    with torch.device("meta"):
        model = MultiMAE(MultiMAEConfig(**sizes))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("changes", [{}, {"drop_path": 0.2}, {"task_balancer": "uncertainty", "image_size": (24, 40)}])
def test_no_value_is_read_back_from_the_device(changes, seed, monkeypatch):
    """Tensors on the meta device have no values: whatever waited for one would fail."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # which does not know that device
    model = MultiMAE(small_config(**changes), seed).to("meta")
    batch = {name: tensor.to("meta") for name, tensor in random_batch(model.config, 2, seed).items()}
    losses = model(batch, model.plan(seed, np.arange(2)).to("meta"))
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_training_reduces_the_loss(seed):
    config = small_config()
    model, batch = MultiMAE(config, seed), random_batch(config, 4, seed)
    plan = model.plan(seed, np.arange(4))
    optimizer = torch.optim.AdamW(model.parameter_groups(0.05), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = model(batch, plan)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
