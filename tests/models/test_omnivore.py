from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch
from torch.nn import functional

from omnitrunk.models import Omnivore, OmnivoreConfig
from omnitrunk.models.omnivore_config import preset
from tests.models.small_omnivore import (
    KINDS,
    double_omnivore,
    normalized,
    omnivore_batch,
    slow_logits,
    small_omnivore,
)
from tests.models.test_flops import assert_counted

CASES = {
    "three kinds": {},
    "narrow windows": {"window": (1, 2, 4), "depths": (3, 1, 2), "heads": (1, 2, 2)},
    "one window": {"window": (8, 7, 7)},
    "other patches": {"patch": (3, 5, 4), "mlp_ratio": 2.5},
    "drop path": {"drop_path": 0.6},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_loss_and_gradients_equal_the_slow_computation(changes, kind, seed):
    config = small_omnivore(**changes)
    model, batch = double_omnivore(config, seed), omnivore_batch(kind, config, seed)
    plan = model.plan(seed, np.arange(3), kind)
    loss = model(batch, plan)["loss"]
    expected = functional.cross_entropy(slow_logits(model, batch, kind, plan.drop_scale), batch["label"])
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours, slow = (torch.autograd.grad(value, parameters, allow_unused=True) for value in (loss, expected))
    for name, gradient, reference in zip(names, ours, slow, strict=True):
        assert (gradient is None) == (reference is None), name
        if gradient is not None:
            torch.testing.assert_close(gradient, reference, rtol=1e-7, atol=1e-9, msg=lambda text, at=name: at + text)


def test_clipped_windows_have_the_biases_of_their_own_offsets_unless_faithful(seed):
    faithful = double_omnivore(small_omnivore(window=(8, 7, 7)), seed)
    corrected = Omnivore(replace(faithful.config, faithful=False)).double()
    corrected.load_state_dict(faithful.state_dict())
    batch = omnivore_batch("image", faithful.config, seed)
    assert (faithful.logits(batch, "image") - corrected.logits(batch, "image")).abs().max() > 1e-4
    centered = Omnivore(replace(corrected.config, window=(1, 6, 7))).double()
    tables = {
        name: value.view(15, 13, 13, -1)[7:8, 1:12].flatten(0, 2) if name.endswith("bias_table") else value
        for name, value in corrected.state_dict().items()
    }
    centered.load_state_dict(tables)  # no side of the first map is clipped any more
    ours, expected = (model.features(batch, stage=0) for model in (corrected, centered))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_bytes_are_normalized_and_a_picture_is_a_clip_with_a_frame_of_mean_color(seed):
    config = small_omnivore()
    model, batch = double_omnivore(config, seed), omnivore_batch("image", config, seed)
    pixels = normalized(batch["rgb"])
    clips = torch.stack([pixels, torch.zeros_like(pixels)], dim=1)
    expected = model.features({"video": clips})
    torch.testing.assert_close(model.features(batch), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.features({"rgb": pixels}), expected, rtol=1e-9, atol=1e-9)
    even = {"rgb": batch["rgb"][:, :20, :24]}  # whole patches: bytes go through the projection as they are
    torch.testing.assert_close(model.features(even), model.features({"rgb": pixels[:, :20, :24]}), rtol=1e-9, atol=1e-9)


def test_depth_alone_is_depth_with_a_picture_of_zeros(seed):
    config = small_omnivore()
    model, batch = double_omnivore(config, seed), omnivore_batch("rgbd", config, seed)
    blank = {"rgb": torch.zeros(batch["rgb"].shape, dtype=torch.float64), "depth": batch["depth"]}
    torch.testing.assert_close(model.features(batch, ("depth",)), model.features(blank), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_batch_does_not_use_rests(kind, seed):
    config = small_omnivore()
    model = Omnivore(config, seed)
    batch = omnivore_batch(kind, config, seed)
    batch |= {"depth": batch["depth"].float()} if "depth" in batch else {}
    losses = model(batch, model.plan(seed, np.arange(3), kind))
    assert set(losses) == {kind, "loss"}
    losses["loss"].backward()
    resting = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    others = tuple(f"heads.{other}." for other in KINDS if other != kind) + (
        () if kind == "rgbd" else ("tokenizers.depth.",)
    )
    assert resting == {name for name in model.state_dict() if name.startswith(others)}


def test_recomputing_gives_the_same_and_keeps_less(seed):
    plain = double_omnivore(small_omnivore(drop_path=0.3), seed)
    again = Omnivore(replace(plain.config, recompute=True)).double()
    again.load_state_dict(plain.state_dict())
    batch, plan, kept, gradients = (
        omnivore_batch("video", plain.config, seed),
        plain.plan(seed, np.arange(3), "video"),
        [],
        [],
    )
    for model in (plain, again):
        sizes = {}
        pack = functools.partial(_note_size, sizes)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(batch, plan)["loss"]
        kept.append(sum(sizes.values()))
        used = [
            parameter for name, parameter in model.named_parameters() if "depth" not in name and "heads" not in name
        ]
        gradients.append(torch.autograd.grad(loss, used))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
    assert kept[1] < 0.5 * kept[0]


def _note_size(sizes, tensor):
    storage = tensor.untyped_storage()
    sizes[storage.data_ptr()] = storage.nbytes()
    return tensor


def test_plans_are_keyed_and_only_the_head_with_dropout_drops(seed):
    config = small_omnivore(drop_path=0.5, head_dropout={"video": 0.5})
    model = double_omnivore(config, seed)
    whole, part = (model.plan(seed, positions, "video") for positions in (np.arange(8), np.array([5, 2])))
    assert torch.equal(whole.drop_scale[:, [5, 2]], part.drop_scale) and whole.drop_scale.shape == (8, 8)
    assert torch.equal(whole.dropout_keys[[5, 2]], part.dropout_keys)
    assert not torch.equal(model.plan(seed + 1, np.arange(8), "video").drop_scale, whole.drop_scale)
    for kind in ("image", "video"):
        batch = omnivore_batch(kind, config, seed)
        still = replace(model.plan(seed, np.arange(3), kind), drop_scale=None)
        assert (still.dropout_keys is None) == (kind == "image") and still.to("cpu").dataset == kind
        loss, expected = model(batch, still)["loss"], slow_logits(model, batch, kind)
        whole = functional.cross_entropy(expected, batch["label"])
        assert torch.isclose(loss, whole, rtol=1e-9) == (kind == "image")


def test_stages_hand_on_maps_and_mistakes_are_one_line(seed):
    config = small_omnivore()
    model, batch = double_omnivore(config, seed), omnivore_batch("video", config, seed)
    first, last = (model.features(batch, stage=stage) for stage in (0, 1))
    assert first.shape == (3, 3, 3, 4, 32) and last.shape == first.shape
    pooled = model.trunk.norm(last).mean((1, 2, 3))
    torch.testing.assert_close(model.features(batch), pooled, rtol=1e-9, atol=1e-9)
    wrong = [
        (lambda: model.features(batch, stage=2), "stages 0 to 1"),
        (lambda: model.features(batch, ("audio",)), "'audio' is no input"),
        (lambda: model.features({"rgb": first, "video": first}), "rgb and video does not fit"),
        (lambda: model.features({"label": batch["label"]}), "no known modality does not fit"),
        (lambda: model.logits(batch), "no data set was named; choose one of image, video, rgbd"),
        (lambda: model.logits(batch, "k400"), "knows no data set 'k400'"),
        (lambda: preset("xl"), "no Omnivore has the size 'xl'"),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": (2, 5)}, "5 does not divide 32, the width of stage 1"),
        ({"heads": (2,)}, "must name 1 or more for every stage"),
        ({"window": (2, 0, 3)}, "window = .* must be 3 numbers"),
        ({"patch": (2, 4)}, "patch = .* must be 3 numbers"),
        ({"image_sets": {}, "video_sets": {}, "rgbd_sets": {}}, "are all empty"),
        ({"video_sets": {"image": 3}}, "share a name"),
        ({"image_sets": {"in-1k": 3}}, "needs a Python name"),
        ({"image_sets": {"image": 0}}, "1 class or more"),
        ({"image_sets": {"train": 3}}, "'train' has a name that PyTorch's modules use themselves; rename it"),
        ({"video_sets": {"training": 3}}, "'training' has a name that PyTorch's modules use"),
        ({"head_dropout": {"pets": 0.5}}, "head_dropout names 'pets'"),
        ({"head_dropout": {"video": 1.0}}, r"head_dropout.video = 1.0 must lie in 0..1"),
        ({"drop_path": 1.0}, "drop_path = 1.0"),
        ({"image_size": 0}, "image_size = 0 is too small"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        small_omnivore(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_that_torch_counts(kind, seed):
    sets = {f"{other}_sets": {} for other in KINDS} | {f"{kind}_sets": {kind: 5}}
    config = small_omnivore(**sets, image_size=24, frames=4, window=(2, 3, 3))
    batch = omnivore_batch(kind, config, seed)
    assert_counted(Omnivore(config, seed), batch | ({"depth": batch["depth"].float()} if kind == "rgbd" else {}), seed)


def test_work_of_the_published_tiny_model(seed):
    """GMAC measured on the official code; it projects the zero frame of a picture, too."""
    small = {"image": (1, 224, 4.50), "video": (8, 112, 5.14)}
    for kind, (frames, side, expected) in small.items():
        model = Omnivore(preset("t", frames=frames, image_size=side), seed)
        assert model.flops(model.plan(seed, np.arange(1), kind)) / 2e9 == pytest.approx(expected, rel=0.01)


def _counts(config: OmnivoreConfig) -> Counter:
    from omnitrunk.models.official.omnivore import layout
    from omnitrunk.models.official.parts import Part

    found = Counter()
    for part in layout(config):
        group = "index" if not isinstance(part, Part) else part.official.partition(".")[0]
        found[group, "tensors"] += 1
        found[group, "values"] += prod(part.shape) if isinstance(part, Part) else prod(config.window) ** 2
        if isinstance(part, Part):
            decays = config.decays(part.ours)
            found[decays, "tensors"] += 1
            found[decays, "values"] += prod(part.shape)
    return found


@pytest.mark.parametrize(
    ("size", "values", "entries", "megabytes"),
    [
        ("t", 27_853_830, 187, 14.8),
        ("s", 49_512_438, 355, 29.5),
        ("b", 88_660_168, 355, 118),
        ("l", 196_345_836, 355, 29.5),
    ],
)
def test_presets_have_the_parameters_of_the_release(size, values, entries, megabytes):
    found = _counts(preset(size))
    assert found["trunk", "values"] == values
    assert found["trunk", "tensors"] + found["index", "tensors"] == entries
    assert 8 * found["index", "values"] / 1e6 == pytest.approx(megabytes, rel=0.005)
    assert preset(size, paper=True).drop_path == {"t": 0.1, "s": 0.2, "b": 0.3, "l": 0.3}[size]


def test_matrices_decay():
    found = _counts(preset("t"))
    assert (found[True, "tensors"], found[True, "values"]) == (56, 28_528_896)
    assert (found[False, "tensors"], found[False, "values"]) == (125, 416_145)


def test_with_one_kind_of_data_it_is_swin_or_video_swin():
    """Parameters as Liu et al. 2021 and 2022 have them."""
    swin = _counts(OmnivoreConfig(patch=(1, 4, 4), window=(1, 7, 7)))
    video = _counts(OmnivoreConfig(image_sets={}, video_sets={"k400": 400}))
    assert swin["trunk", "values"] + swin["heads", "values"] == 28_288_354
    assert video["trunk", "values"] + video["heads", "values"] == 28_158_070
