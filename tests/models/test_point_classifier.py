from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from omnitrunk.models import MaskedAutoencoder, PartSegmenter, PartSegmenterConfig, PointClassifier, build_model
from omnitrunk.models.official.state_dicts import from_official, layout, to_official
from omnitrunk.models.pathway import PathwayConfig, join, merge
from tests.models.small import lively
from tests.models.small_autoencoders import assert_same_loss_and_gradients
from tests.models.small_point_tuning import labeled_clouds, slow_class_logits, small_classifier, small_segmenter

BOTH = pytest.mark.parametrize("make", [small_classifier, small_segmenter])


def test_loss_and_gradients_equal_the_slow_computation(seed):
    config = small_classifier(label_smoothing=0.1)
    model, batch = lively(PointClassifier(config, seed), seed).double(), labeled_clouds(config, 4, seed)
    losses = model(batch, model.plan(seed, np.arange(4)))
    expected = functional.cross_entropy(slow_class_logits(model, batch), batch["label"], label_smoothing=0.1)
    assert set(losses) == {"class", "loss"}
    assert_same_loss_and_gradients(model, losses["loss"], expected)


def test_both_hidden_layers_are_dropped_from(seed):
    config = small_classifier(dropout=0.5)
    model, batch = PointClassifier(config, seed), labeled_clouds(config, 4, seed)
    batch = {"points": batch["points"].float(), "label": batch["label"]}
    plan, seen = model.plan(seed, np.arange(4)), []
    for layer in (model.head.fc2.linear, model.head.fc3):
        layer.register_forward_hook(lambda _layer, inputs, _output: seen.append(inputs[0]))
    model(batch, plan)
    first, second = seen
    for values in (first, second):  # of values that are positive before a half are dropped, on top of the ReLU's zeros
        assert (values == 0).float().mean() > 0.6
    assert not torch.equal(first == 0, second == 0)


@BOTH
def test_what_is_dropped_depends_on_the_position_alone_and_nothing_is_in_evaluation(make, seed):
    config = make(dropout=0.5, drop_path=0.5)
    model = build_model(config, seed)
    whole, other = model.plan(seed, np.arange(6)), model.plan(seed, np.array([4, 1]))
    assert torch.equal(whole.dropout_keys[:, [4, 1]], other.dropout_keys)
    assert torch.equal(whole.drop_scale[:, [4, 1]], other.drop_scale)
    assert whole.to("cpu").dropout_keys.shape == (model.dropouts, 6)
    batch = labeled_clouds(config, 3, seed)
    batch["points"] = batch["points"].float()
    with torch.no_grad():
        assert torch.equal(model.logits(batch), model.logits(batch))
        alone = {name: value[1:2] for name, value in batch.items()}
        torch.testing.assert_close(model.logits(alone), model.logits(batch)[1:2], rtol=1e-4, atol=1e-5)


@BOTH
def test_pretraining_fits_by_name_and_everything_else_is_in_the_head(make, seed):
    config = make()
    ours, theirs = (
        model.state_dict() for model in (build_model(config, seed), MaskedAutoencoder(config.encoder_config, seed))
    )
    assert all(name.startswith("head.") for name in ours.keys() - theirs.keys())
    assert all(name.startswith(("decoder.", "objective.")) for name in theirs.keys() - ours.keys())


@BOTH
def test_joined_layers_learn_and_fold_into_a_plain_model(make, seed):
    config = make(dropout=0.2)
    model, other = build_model(config, seed), MaskedAutoencoder(config.encoder_config, seed + 1)
    join(model.blocks, [other.blocks.state_dict()], PathwayConfig(scale=0.3))
    batch = labeled_clouds(config, 4, seed)
    batch["points"] = batch["points"].float()
    model(batch, model.plan(seed, np.arange(4)))["loss"].backward()
    scales = {name: p.grad for name, p in model.named_parameters() if ".pathway.scales." in name}
    assert len(scales) == 4 * config.encoder_config.depth
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in scales.values())
    plain = build_model(config, seed)
    plain.load_state_dict(merge(model.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(plain.logits(batch), model.logits(batch), rtol=1e-4, atol=1e-5)


@BOTH
def test_released_weights_go_in_and_come_out(make, seed):
    config, generator = make(), torch.Generator().manual_seed(seed)
    official = {part.official: torch.randn(part.shape, generator=generator) for part in layout(config)}
    ours = from_official(official, config)
    assert ours.keys() == build_model(config, seed).state_dict().keys()
    back = to_official(ours, config)
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], value) for name, value in official.items())


def test_released_names_and_sizes():
    shapes = {part.official: part.shape for part in layout(PartSegmenterConfig())}
    assert shapes["propagation_0.mlp_convs.0.weight"] == (1536, 1155, 1)
    assert shapes["convs1.weight"] == (512, 1024 + 2 * 1152 + 64, 1) and shapes["convs3.bias"] == (50,)
    assert shapes["label_conv.0.weight"] == (64, 16, 1) and "label_conv.0.bias" not in shapes
    assert round(sum(p.numel() for p in PartSegmenter(PartSegmenterConfig()).parameters()) / 1e6, 2) == 27.06


def test_the_position_of_the_class_token_decays_in_faithful_mode_only(seed):
    for faithful in (False, True):
        config = small_classifier(faithful=faithful, encoder={"system": "pointmae", "depth": 1})
        groups = PointClassifier(config, seed).parameter_groups(0.05)
        decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
        assert ("head.class_position" in decayed) == faithful and config.encoder_config.faithful == faithful
        assert "head.fc1.linear.weight" in decayed
        assert not {"head.class_token", "head.fc1.norm.weight", "head.fc3.bias"} & decayed


@BOTH
def test_the_head_starts_at_the_default_of_its_layers(make, seed):
    model = build_model(make(), seed)
    for name, layer in model.head.named_modules():
        if hasattr(layer, "weight_and_bias"):
            bound = layer.weight.shape[1] ** -0.5
            assert 0.7 * bound < layer.weight.abs().max() <= bound, name
        elif hasattr(layer, "running_var"):
            assert layer.weight.eq(1).all() and layer.bias.eq(0).all(), name


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (small_classifier, {"encoder": {"system": "mae"}}, "encoder.system = 'mae' is no encoder of points"),
        (small_classifier, {"encoder": {"system": "pointmae", "group": 3}}, "encoder.group is no field of pointmae"),
        (small_classifier, {"encoder": {"system": "pointmae", "heads": 5}}, "heads = 5 does not divide"),
        (small_classifier, {"classes": 0}, "classes = 0 is too small"),
        (small_classifier, {"dropout": 1.0}, "dropout = 1.0 must lie in 0..1"),
        (small_classifier, {"label_smoothing": -0.1}, "label_smoothing = -0.1"),
        (small_segmenter, {"taps": (1, 3, 3)}, "taps = (1, 3, 3) must ascend from 1 or more to encoder.depth = 3"),
        (small_segmenter, {"taps": (1, 2, 4)}, "to encoder.depth = 3 or less"),
        (small_segmenter, {"part_counts": (2, 0)}, "part_counts = (2, 0) must name at least one part"),
        (small_segmenter, {"point_width": 10}, "point_width = 10 must be a multiple of 4"),
    ],
)
def test_a_mistake_is_one_line(make, options, message):
    with pytest.raises(ValueError) as error:
        make(**options)
    assert message in str(error.value) and "\n" not in str(error.value)
