from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.models import Classifier, ClassifierConfig, MaskedAutoencoder, build_model
from omnitrunk.models.official.state_dicts import from_official, to_official
from omnitrunk.models.pathway import PathwayConfig, join

SIZES = {"width": 16, "depth": 3, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
ENCODERS = {
    "mae": {"system": "mae", "image_size": 32, "patch_size": 8, **SIZES},
    "videomae": {"system": "videomae", "frames": 4, "image_size": 16, "patch_size": 8, **SIZES},
    "audiomae": {"system": "audiomae", "frames": 16, "mels": 32, "patch_size": 8, **SIZES},
}


def small(name="mae", **options):
    return ClassifierConfig(encoder=ENCODERS[name], classes=5, **options)


def batch_of(config, seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    (name,) = config.inputs
    if name == "audio":
        values = torch.rand(count, 3000, generator=generator)
    else:
        shape = {"rgb": (32, 32, 3), "video": (4, 16, 16, 3)}[name]
        values = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return {name: values, "label": torch.randint(0, 5, (count,), generator=generator)}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_loss_is_the_cross_entropy_of_the_pooled_encoder(name, seed):
    config = small(name, label_smoothing=0.1)
    model, pretrained = Classifier(config, seed), MaskedAutoencoder(config.encoder_config, seed + 1)
    own = {key: value for key, value in model.state_dict().items() if key.startswith(("norm.", "head."))}
    shared = {key: value for key, value in pretrained.state_dict().items() if key in model.state_dict()}
    model.load_state_dict(shared | own)
    pretrained.norm = torch.nn.Identity()
    pretrained.norm.add = lambda branch, stream, scale=None: (stream + branch, stream)
    batch = batch_of(config, seed)
    pooled = pretrained.encode(batch)[:, int(config.encoder_config.class_token) :].mean(dim=1)
    logits = torch.nn.functional.layer_norm(pooled, (16,), eps=1e-6) @ model.head.weight.T
    expected = torch.nn.functional.cross_entropy(logits, batch["label"], label_smoothing=0.1)
    losses = model(batch, model.plan(seed, np.arange(3)))
    torch.testing.assert_close(losses["class"], expected)
    torch.testing.assert_close(model.logits(batch), logits)


def test_drop_path_is_keyed_and_off_in_evaluation(seed):
    config = small(drop_path=0.6)
    model, batch = Classifier(config, seed), batch_of(small(), seed)
    plans = [model.plan(seed, np.array([4, 7, 1])), model.plan(seed, np.array([1, 4, 7]))]
    assert torch.equal(plans[0].drop_scale[:, [2, 0, 1]], plans[1].drop_scale)
    assert torch.equal(model.logits(batch), model.logits(batch))


def test_learning_rates_decay_towards_the_input(seed):
    model = Classifier(small(layer_decay=0.5, train_positions=True), seed)
    join(model.blocks, [model.blocks.state_dict()], PathwayConfig())
    scales, decays = {}, {}
    for group in model.parameter_groups(0.05):
        scales |= dict.fromkeys(group["names"], group["lr_scale"])
        decays |= dict.fromkeys(group["names"], group["weight_decay"])
    assert scales["head.weight"] == scales["norm.bias"] == 1.0
    assert scales["blocks.2.mlp.fc1.weight"] == 0.5 and scales["blocks.0.norm1.bias"] == 0.125
    assert scales["blocks.1.attn.qkv.pathway.scales.0"] == 0.25
    assert scales["tokenizer.weight"] == scales["class_token"] == scales["tokenizer.position"] == 0.0625
    decayed = {name for name, decay in decays.items() if decay}
    assert "blocks.0.attn.qkv.pathway.auxiliaries.0" in decayed and "head.weight" in decayed
    assert not any(part in name for name in decayed for part in ("scales", "bias", "norm", "position", "class_token"))


def test_only_scales_and_head_are_trained_when_the_rest_is_fixed(seed):
    model = Classifier(small(train="head"), seed)
    join(model.blocks, [model.blocks.state_dict()], PathwayConfig(train_auxiliaries=False))
    model.freeze()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if ".pathway.scales." not in name} == {
        "norm.weight", "norm.bias", "head.weight", "head.bias",
    }  # fmt: skip
    assert len(trained) == 4 + 12


@pytest.mark.parametrize("name", ENCODERS)
def test_official_names_are_those_of_fine_tuned_releases(name, seed):
    config = small(name)
    model = build_model(config, seed)
    official = to_official(model.state_dict(), config)
    assert {"fc_norm.weight", "head.bias", "blocks.0.attn.proj.weight", "patch_embed.proj.weight"} <= set(official)
    assert not any(key.startswith(("norm.", "decoder")) for key in official)
    again = from_official(official, config)
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": {"system": "multimae"}}, "encoder.system = 'multimae' is none of mae, "),
        ({"encoder": {"system": "mae", "kepp": 3}}, "encoder.kepp is no field of mae"),
        ({"encoder": {"system": "mae", "image_size": 30}}, "does not divide"),
        ({"classes": 0}, "classes = 0 is too small"),
        ({"layer_decay": 0.0}, "layer_decay = 0.0 must lie in 0..1"),
        ({"label_smoothing": 1.0}, "label_smoothing = 1.0"),
    ],
)
def test_a_mistake_is_one_line(options, message):
    with pytest.raises(ValueError) as error:
        ClassifierConfig(**options)
    assert message in str(error.value) and "\n" not in str(error.value)
