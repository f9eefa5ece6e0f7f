from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from omnitrunk.kernels.dispatch import use
from omnitrunk.models import Omnivore, OmnivoreSegmenter, OmnivoreSegmenterConfig
from omnitrunk.models.layers.trunk import add_branch
from tests.models.small import lively
from tests.models.small_omnivore import small_omnivore

IGNORED = 255
ENCODER = {
    "system": "omnivore", "width": 16, "depths": [2, 1], "heads": [2, 4], "window": [2, 3, 3], "image_size": [24, 20],
    "image_sets": {"image": 5}, "video_sets": {"video": 4}, "rgbd_sets": {"rgbd": 3},
}  # fmt: skip


def small_segmenter(encoder=(), **changes):
    sizes = {"encoder": {**ENCODER, **dict(encoder)}, "classes": 5, "head_width": 8, "pools": (1, 2), "drop_path": 0.4}
    return OmnivoreSegmenterConfig(**{**sizes, **changes})


def labeled_pictures(config, batch, seed, ignored=0.3):
    generator = torch.Generator().manual_seed(seed)
    height, width = config.image_shape
    labels = torch.randint(0, config.classes, (batch, height // 4, width // 4), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORED
    return {
        "rgb": torch.randint(0, 256, (batch, height, width, 3), generator=generator).to(torch.uint8),
        "depth": torch.randn(batch, height, width, 1, generator=generator, dtype=torch.float64),
        "semseg": labels.to(torch.uint8),
        "label": torch.zeros(batch, dtype=torch.int64),
    }


def segmenter(config, seed):
    return lively(OmnivoreSegmenter(config, seed), seed).double()


@pytest.mark.parametrize("encoder", [{}, {"rgbd_sets": {}}, {"recompute": True}], ids=["rgbd", "rgb", "recompute"])
def test_the_loss_is_that_of_the_maps_before_merging(encoder, seed):
    config = small_segmenter(encoder)
    model, batch = segmenter(config, seed), labeled_pictures(config, 4, seed)
    plan = model.plan(seed, np.arange(4))
    losses = model(batch, plan)
    tokens = model.tokenizers["rgb"](batch["rgb"])
    if "depth" in config.inputs:
        tokens = tokens + model.tokenizers["depth"](batch["depth"])
    maps, stream, scales = [], tokens, iter(plan.drop_scale)
    for stage in model.trunk.stages:
        branch, scale = None, None
        for block in stage.blocks:
            stream, branch = block(stream, branch, (scale, next(scales)))
            scale = next(scales)
        maps.append(add_branch(stream, branch, scale))
        stream = stage.merge(maps[-1]) if stage.merge is not None else None
    logits = model.head([maps[0][:, 0], model.trunk.norm(maps[1])[:, 0]])
    each = []
    for answer, labels in zip(logits, batch["semseg"].long(), strict=True):
        labelled = labels != IGNORED
        each.append(functional.nll_loss(answer[labelled].log_softmax(1), labels[labelled]))
    expected = torch.stack(each).mean()
    assert set(losses) == {"semseg", "loss"}
    torch.testing.assert_close(losses["loss"], expected, rtol=1e-9, atol=1e-9)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (losses["loss"], expected)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)


def test_every_parameter_learns(seed):
    config = small_segmenter(drop_path=0.0)
    model, batch = segmenter(config, seed), labeled_pictures(config, 4, seed)
    model(batch, model.plan(seed, np.arange(4)))["loss"].backward()
    assert not [name for name, parameter in model.named_parameters() if not parameter.grad.abs().max() > 0]


def test_micro_batches_average_to_the_whole_however_many_labels_they_have(seed):
    config = small_segmenter()
    model, batch = segmenter(config, seed), labeled_pictures(config, 4, seed)
    batch["semseg"][0, 1:] = IGNORED
    whole = model(batch, model.plan(seed, np.arange(4)))["loss"]
    parts = [
        model({name: tensor[rows] for name, tensor in batch.items()}, model.plan(seed, np.arange(4)[rows]))["loss"]
        for rows in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_pictures_without_any_label_teach_nothing(seed):
    config = small_segmenter()
    model, batch = segmenter(config, seed), labeled_pictures(config, 2, seed, ignored=1.1)
    loss = model(batch, model.plan(seed, np.arange(2)))["loss"]
    loss.backward()
    assert loss == 0 and not any(p.grad.abs().max() for p in model.parameters())


def test_half_precision_gives_nearly_the_same(seed):
    config = small_segmenter(drop_path=0.0)
    model, batch = OmnivoreSegmenter(config, seed), labeled_pictures(config, 2, seed)
    batch["depth"] = batch["depth"].float()
    plan = model.plan(seed, np.arange(2))
    exact = model(batch, plan)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch, plan)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_answers_are_the_likeliest_classes_as_coarse_as_the_labels(seed):
    config = small_segmenter()
    model, batch = segmenter(config, seed), labeled_pictures(config, 3, seed)
    with torch.no_grad():
        found, logits = model.segment(batch), model.logits(batch)
    assert found.shape == batch["semseg"].shape and logits.shape == (*found.shape, config.classes)
    assert torch.equal(found, logits.argmax(3))


def test_tokenizers_and_trunk_have_the_names_of_the_omnivore(seed):
    config = small_segmenter()
    ours, theirs = (model.state_dict() for model in (OmnivoreSegmenter(config), Omnivore(config.encoder_config, seed)))
    shared = {name: tuple(value.shape) for name, value in theirs.items() if not name.startswith("heads.")}
    assert shared == {name: tuple(value.shape) for name, value in ours.items() if not name.startswith("head.")}


def test_the_trunks_maps_end_with_what_it_returns(seed):
    model = lively(Omnivore(small_omnivore(), seed), seed)
    tokens = torch.randn(2, 3, 6, 7, 16, generator=torch.Generator().manual_seed(seed))
    first, last = model.trunk.maps(tokens)
    torch.testing.assert_close(last, model.trunk(tokens))
    torch.testing.assert_close(model.trunk.stages[0].merge(first), model.trunk.map_of(tokens, 0))


def test_arithmetic_is_what_torch_counts(seed):
    config = small_segmenter()
    model, batch = OmnivoreSegmenter(config, seed), labeled_pictures(config, 2, seed)
    batch["depth"] = batch["depth"].float()
    counter = FlopCounterMode(display=False)
    with use("reference"), counter, torch.no_grad():
        model.logits(batch)
    assert counter.get_total_flops() == pytest.approx(2 * model.flops(model.plan(seed, np.arange(2))), rel=0.02)


def test_it_learns_to_tell_dark_from_bright(seed):
    config = small_segmenter(classes=2, drop_path=0.0)
    model = OmnivoreSegmenter(config, seed)
    optimizer, losses = torch.optim.AdamW(model.parameter_groups(0.05), lr=1e-2), []
    for step in range(25):
        batch = labeled_pictures(config, 4, seed + step, ignored=0)
        bright = batch["semseg"].clamp(max=1).repeat_interleave(4, 1).repeat_interleave(4, 2)
        batch |= {"rgb": batch["rgb"] // 2 + 127 * bright[..., None], "depth": batch["depth"].float()}
        loss = model(batch, model.plan(seed, np.arange(4)))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": {"system": "mae"}}, "encoder.system = 'mae' has no maps to segment; set it to 'omnivore'"),
        ({"encoder": {"system": "omnivore", "wdth": 3}}, "encoder.wdth is no field of omnivore; take it out"),
        ({"encoder": {**ENCODER, "depths": 2}}, "^encoder.depths = 2 must be a list of values, each a whole number$"),
        ({"encoder": {**ENCODER, "width": 96.5}}, "^encoder.width = 96.5 must be a whole number$"),
        ({"encoder": {**ENCODER, "width": "wide"}}, "^encoder.width = 'wide' must be a whole number$"),
        ({"encoder": {**ENCODER, "rgbd_sets": 40}}, "^encoder.rgbd_sets = 40 must be a table of names and values"),
        ({"encoder": {**ENCODER, "rgbd_sets": {"rgbd": "x"}}}, "^encoder.rgbd_sets = {'rgbd': 'x'} must be a table"),
        ({"encoder": {**ENCODER, "window": [7, 7]}}, r"^encoder.window = \[7, 7\] must be a list of 3 values"),
        ({"encoder": {**ENCODER, "image_size": "big"}}, "must be a whole number or a list of 2 values, each a whole"),
        ({"encoder": {**ENCODER, "recompute": 1}}, "^encoder.recompute = 1 must be true or false$"),
        ({"encoder": {**ENCODER, "drop_path": True}}, "^encoder.drop_path = True must be a number$"),
        ({"encoder": {**ENCODER, "patch": [2, 8, 8]}}, r"set it to \(2, 4, 4\)"),
        ({"encoder": {**ENCODER, "image_size": 30}}, r"encoder.image_size = \(30, 30\) does not divide"),
        ({"encoder": {**ENCODER, "image_sets": {}, "rgbd_sets": {}}}, "are empty, but pictures are segmented"),
        ({"classes": 0}, "classes = 0 is too small; use 1 or more"),
        ({"head_width": 0}, "head_width = 0 is too small"),
        ({"pools": ()}, r"pools = \(\) must name one grid or more"),
        ({"drop_path": 1.0}, "drop_path = 1.0 must lie in 0..1"),
    ],
)
def test_configurations_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_segmenter(**changes)


def test_labels_that_do_not_fit_are_refused(seed):
    config = small_segmenter()
    model, batch = segmenter(config, seed), labeled_pictures(config, 2, seed)
    plan = model.plan(seed, np.arange(2))
    with pytest.raises(ValueError, match=r"semseg is \(2, 6, 4\), but the map that is found \(2, 6, 5\)"):
        model(batch | {"semseg": batch["semseg"][:, :, 1:]}, plan)
    batch["semseg"][1, 2, 3] = 7
    with pytest.raises(ValueError, match=r"semseg has the class 7, but model.classes = 5: raise it"):
        model(batch, plan)
