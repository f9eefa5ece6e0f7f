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
    torch.nn.init.normal_(model.head.weight)
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


@pytest.mark.parametrize("name", ["mae", "videomae", "audiomae"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixtures_is_that_of_soft_targets(name, smoothing, seed):
    cut = {} if name == "audiomae" else {"cutmix": 1.0, "erase": 0.5}
    config = small(name, label_smoothing=smoothing, mixup=0.8, mixed=0.9, **cut)
    model, batch, positions = Classifier(config, seed), batch_of(config, seed, 6), np.arange(8, 14)
    torch.nn.init.normal_(model.head.weight)
    plan = model.plan(seed, positions)
    one_hot = torch.nn.functional.one_hot(batch["label"], 5).double()
    share = plan.mixing.share.double()[:, None]
    targets = share * one_hot + (1 - share) * one_hot[[1, 0, 3, 2, 5, 4]]
    targets = (1 - smoothing) * targets + smoothing / 5
    logits = model.training_logits(batch, plan)
    expected = -(targets * logits.double().log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(model(batch, plan)["loss"].double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits, model.logits(batch), atol=1e-3)


def test_what_is_trained_on_does_not_depend_on_how_the_batch_is_cut(seed):
    for name, options in {
        "videomae": {"mixup": 0.8, "cutmix": 1.0, "erase": 0.5, "drop_path": 0.5},
        "audiomae": {"mixup": 10.0, "mixed": 0.5, "mask_frames": 8, "mask_mels": 8, "drop_times": 0.4},
    }.items():
        config = small(name, **options)
        model, batch, positions = Classifier(config, seed), batch_of(config, seed, 8), np.arange(40, 48)
        torch.nn.init.normal_(model.head.weight)
        whole = model.training_logits(batch, model.plan(seed, positions))
        half = {key: value[4:] for key, value in batch.items()}
        torch.testing.assert_close(model.training_logits(half, model.plan(seed, positions[4:])), whole[4:])
        assert not torch.allclose(model.training_logits(half, model.plan(seed + 1, positions[4:])), whole[4:])


def test_whole_times_and_bands_of_patches_are_dropped(seed):
    encoder = ENCODERS["audiomae"] | {"frames": 48, "mels": 32, "decoder": "global"}
    config = ClassifierConfig(encoder=encoder, classes=5, drop_times=0.2, drop_bands=0.3)
    plan = Classifier(config, seed).plan(seed, np.arange(9))
    assert config.keep == plan.keep.shape[1] == 4 * 2  # of 6 times 4.8, of 4 bands 2.8
    for kept in plan.keep.tolist():
        assert len({token // 4 for token in kept}) == 4 and len({token % 4 for token in kept}) == 2


@pytest.mark.parametrize("faithful", [False, True])
def test_blank_is_the_average_of_the_data_set_or_as_released_the_logarithm_0(faithful, seed):
    encoder = ENCODERS["audiomae"] | {"mean": -4.0, "std": 2.5}
    config = ClassifierConfig(encoder=encoder, classes=5, faithful=faithful, mask_frames=16, mask_mels=32)
    model, batch = Classifier(config, seed), {"audio": torch.zeros(1, 16, 32)}
    positions = np.arange(100)
    spans = model.plan(seed, positions).spans
    position = int((spans.frames[:, 1] - spans.frames[:, 0]).argmax())
    plan, hidden = model.plan(seed, positions[[position]]), spans.frames[position].tolist()
    seen = model._blanked(model.prepare({"audio": batch["audio"] + 9}), plan)["audio"][0, slice(*hidden)]
    assert seen.numel() and (seen == (0.8 if faithful else 0.0)).all()


def test_a_plan_moves_with_all_its_parts(seed):
    model = Classifier(small(mixup=0.8, cutmix=1.0, erase=0.25, drop_path=0.1), seed)
    plan = model.plan(seed, np.arange(4)).to("meta")
    parts = (plan.keep, plan.drop_scale, plan.mixing.partner, plan.mixing.box, plan.erasing.box, plan.erasing.start)
    assert all(part.is_meta for part in parts)


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
        ({"encoder": {"system": ["mae"]}}, "encoder.system = ['mae'] is none of mae, "),
        ({"encoder": {"system": "mae", "width": "wide"}}, "encoder.width = 'wide' must be a whole number"),
        ({"encoder": {"system": "audiomae", "decoder": "both"}}, "'both' must be 'local' or 'global'"),
        ({"classes": 0}, "classes = 0 is too small"),
        ({"layer_decay": 0.0}, "layer_decay = 0.0 must lie in 0..1"),
        ({"label_smoothing": 1.0}, "label_smoothing = 1.0"),
        ({"mixup": -1.0}, "mixup = -1.0 is too small"),
        ({"mixed": 0.5}, "mixed = 0.5 mixes nothing while mixup and cutmix are 0"),
        ({"mixup": 1.0, "mixed": 0.0}, "mixed = 0.0 must lie in 0..1, 0 excluded"),
        ({"mask_frames": 4}, "mask_frames = 4 has no meaning for rgb; set it to 0"),
        ({"encoder": {"system": "audiomae"}, "erase": 0.25}, "erase = 0.25 has no meaning for audio"),
        ({"encoder": {"system": "audiomae"}, "mask_mels": 200}, "are more than a spectrogram of 1024 frames and 128"),
        ({"encoder": {"system": "audiomae"}, "drop_bands": 0.9}, "leave none of (64, 8) patches"),
        ({"encoder": {"system": "pointmae"}, "mixup": 0.8}, "mixup = 0.8: point clouds are not mixed"),
    ],
)
def test_a_mistake_is_one_line(options, message):
    with pytest.raises(ValueError) as error:
        ClassifierConfig(**options)
    assert message in str(error.value) and "\n" not in str(error.value)
