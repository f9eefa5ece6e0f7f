"""What training does to the samples of an Omnivore, and what it starts from, against sample by sample formulations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from omnitrunk.engine.plans import check_pairs, plan_maker
from omnitrunk.engine.weights import start_from
from omnitrunk.models import Omnivore
from omnitrunk.models.augmentation.mixing import Mixing, mixed_cross_entropy
from omnitrunk.models.layers.offset_table import resized_offsets, square_side
from omnitrunk.models.official.state_dicts import from_official, to_official
from tests.models.small_omnivore import KINDS, double_omnivore, normalized, omnivore_batch, small_omnivore

RECIPE = {
    "mixup": 0.8,
    "cutmix": 1.0,
    "erase": dict.fromkeys(KINDS, 0.5),
    "erased_depth": -1.4124,
    "rgb_drop": 0.5,
    "label_smoothing": 0.1,
}


def test_targets_are_those_of_the_release():
    """Labels, share, smoothing and targets as its mixup gives them; the partner is the batch backwards there."""
    labels, share, smoothing = torch.tensor([0, 2, 1, 2]), 0.3, 0.1
    expected = [
        [0.295, 0.025, 0.655, 0.025],
        [0.025, 0.655, 0.295, 0.025],
        [0.025, 0.295, 0.655, 0.025],
        [0.655, 0.025, 0.295, 0.025],
    ]
    shares = torch.full((4,), share)
    mixing = Mixing(partner=torch.tensor([3, 2, 1, 0]), share=shares, weight=shares, box=None)
    logits = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    mixed_cross_entropy(logits, labels, mixing, label_smoothing=smoothing).backward()
    targets = logits.detach().softmax(1) - 4 * logits.grad
    torch.testing.assert_close(targets, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def changed_by_hand(batch, plan, fill):
    """Floating, normalized: erased, then mixed with its partner, then blank."""
    found = {name: value.double().clone().numpy() for name, value in batch.items() if name != "label"}
    for name, values in found.items():
        for row, (top, bottom, left, right) in enumerate(plan.erasing.box.tolist()):
            values[row][..., top:bottom, left:right, :] = fill if name == "depth" else 0
        mixtures = values.copy()
        for row, (top, bottom, left, right) in enumerate(plan.mixing.box.tolist()):
            weight, other = plan.mixing.weight[row].item(), values[row ^ 1]
            mixtures[row] = weight * values[row] + (1 - weight) * other
            mixtures[row][..., top:bottom, left:right, :] = other[..., top:bottom, left:right, :]
        found[name] = torch.from_numpy(mixtures)
    for name in found.keys() - {"depth"}:
        found[name] = normalized(found[name].float().round())
        if plan.blank is not None:
            found[name][plan.blank] = 0
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_erased_mixed_and_blanked_as_planned(kind, seed):
    config = small_omnivore(**RECIPE)
    model, batch = double_omnivore(config, seed), omnivore_batch(kind, config, seed, batch=16)
    plan = model.plan(seed, np.arange(16), kind)
    assert (plan.blank is None) == (kind != "rgbd")
    changed = changed_by_hand(batch, plan, config.erased_depth)
    logits = model.training_logits(batch, plan)
    torch.testing.assert_close(logits, model.logits(changed, kind), rtol=1e-5, atol=1e-5)
    smooth = 0.9 * functional.one_hot(batch["label"], config.classes[kind]).double() + 0.1 / config.classes[kind]
    shares = plan.mixing.share.double()[:, None]
    targets = shares * smooth + (1 - shares) * smooth[torch.arange(16) ^ 1]
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model(batch, plan)[kind], expected, rtol=1e-6, atol=1e-6)


def test_pictures_with_depth_go_blank_as_often_as_told_and_others_never(seed):
    config = small_omnivore(rgb_drop=0.5)
    model, positions = double_omnivore(config, seed), np.arange(2000)
    blank = model.plan(seed, positions, "rgbd").blank
    assert abs(blank.double().mean() - 0.5) < 0.05
    assert torch.equal(model.plan(seed, positions[[7, 3]], "rgbd").blank, blank[[7, 3]])
    assert all(model.plan(seed, positions, kind).blank is None for kind in ("image", "video"))
    batch = omnivore_batch("rgbd", config, seed)
    dropped = replace(model.plan(seed, np.arange(3), "rgbd"), blank=torch.tensor([True, False, True]))
    found = model.training_logits(batch, dropped)
    torch.testing.assert_close(found[1:2], model.logits(batch, "rgbd")[1:2])
    depth = model.heads["rgbd"](model.features(batch, ("depth",)))
    torch.testing.assert_close(found[[0, 2]], depth[[0, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_in_parts_is_changed_as_the_whole(kind, seed):
    config = small_omnivore(**RECIPE, drop_path=0.4, head_dropout={kind: 0.5})
    model, batch = double_omnivore(config, seed), omnivore_batch(kind, config, seed, batch=8)
    whole = model.training_logits(batch, model.plan(seed, np.arange(8), kind))
    part = {name: value[4:] for name, value in batch.items()}
    make = plan_maker(model, seed=seed, start=0, batch=8, parts=2, dataset=kind)
    torch.testing.assert_close(model.training_logits(part, make(np.arange(4, 8))), whole[4:])
    assert not torch.allclose(model.training_logits(part, model.plan(seed + 1, np.arange(4, 8), kind)), whole[4:])


def test_what_a_changed_batch_does_not_use_rests(seed):
    model = double_omnivore(small_omnivore(**RECIPE), seed)
    for kind in KINDS:
        model.zero_grad()
        model(omnivore_batch(kind, model.config, seed, batch=4), model.plan(seed, np.arange(4), kind))[
            "loss"
        ].backward()
        resting = {name.rpartition(".")[0] for name, value in model.named_parameters() if value.grad is None}
        expected = {f"heads.{other}" for other in KINDS if other != kind}
        assert resting == expected | (set() if kind == "rgbd" else {"tokenizers.depth", "tokenizers.depth.norm"})


def test_pairs_must_stay_together(seed):
    config = small_omnivore(mixup=0.8)
    check_pairs(config, 8, 4)
    check_pairs(small_omnivore(), 6, 4)
    with pytest.raises(ValueError, match="tears pairs that mixup and cutmix mix: use a multiple of 8"):
        check_pairs(config, 12, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rgb_drop": 0.5, "rgbd_sets": {}}, "rgb_drop = 0.5 leaves nothing to see without rgbd_sets; set it to 0"),
        ({"rgb_drop": 1.0}, "rgb_drop = 1.0 must lie in 0..1"),
        ({"erase": {"video": -0.1}}, r"erase\.video = -0.1 must lie in 0..1"),
        ({"erase": {"pets": 0.1}}, "erase names 'pets', which is no data set; choose from image, video, rgbd"),
        ({"mixup": -1.0}, "mixup = -1.0 is too small"),
        ({"mixed": 0.5}, "mixed = 0.5 mixes nothing"),
        ({"cutmix": 1.0, "mixed": 0.0}, "mixed = 0.0 must lie in 0..1, 0 excluded"),
        ({"trunk_lr_scale": 0.0}, "trunk_lr_scale = 0.0 must be above 0"),
    ],
)
def test_what_training_cannot_do_is_refused(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        small_omnivore(**changes)
    assert "\n" not in str(error.value)


def test_a_fill_for_depth_that_is_never_erased_is_idle():
    idle = {"erased_depth": "erase names no data set of rgbd_sets"}
    assert small_omnivore().idle() == small_omnivore(erase={"video": 0.5}).idle() == idle
    assert not small_omnivore(erase={"rgbd": 0.5}).idle()


def test_only_the_data_sets_that_are_named_are_erased(seed):
    model = Omnivore(small_omnivore(erase={"image": 0.5}), seed)
    plans = {kind: model.plan(seed, np.arange(40), kind) for kind in KINDS}
    assert [kind for kind, plan in plans.items() if plan.erasing is not None] == ["image"]


def test_batches_that_do_not_fit_are_one_line(seed):
    config = small_omnivore(erase={"rgbd": 0.9})
    model, pixels = double_omnivore(config, seed), torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    plan, labels = model.plan(seed, np.arange(2), "rgbd"), torch.tensor([0, 1])
    far, below = torch.tensor([0, 3]), torch.tensor([-1, 2])
    depth = torch.zeros(2, 8, 8, 1)
    wrong = [
        ({"rgb": pixels, "depth": depth, "label": far}, "'rgbd' has the label 3, but its head 3 classes, from 0"),
        ({"rgb": pixels, "depth": depth, "label": below}, "'rgbd' has the label -1"),
        ({"video": torch.zeros(2, 4, 8, 8, 4), "label": labels}, r"video has the shape .*; give \(B, T, H, W, 3\)"),
        ({"video": pixels, "label": labels}, r"video has the shape \(2, 8, 8, 3\); give \(B, T, H, W, 3\)"),
        ({"rgb": torch.zeros(2, 8, 8, 4), "label": labels}, r"rgb has the shape .*; give \(B, H, W, 3\)"),
        ({"rgb": pixels, "depth": depth[..., 0], "label": labels}, r"depth has the shape .*; give \(B, H, W, 1\)"),
        ({"rgb": pixels, "depth": depth[:, :4], "label": labels}, "do not lie on each other"),
        ({"rgb": pixels / 255, "depth": depth, "label": labels}, "give uint8 pixels, or set erase to 0"),
    ]
    for batch, message in wrong:
        changes = plan if "255" in message or "uint8" in message else replace(plan, erasing=None)
        with pytest.raises(ValueError, match=message) as error:
            model(batch, changes)
        assert "\n" not in str(error.value)


def test_trunk_and_tokenizers_may_learn_slower_than_heads(seed):
    model = Omnivore(small_omnivore(trunk_lr_scale=0.1), seed)
    scales = {name: group["lr_scale"] for group in model.parameter_groups(0.05) for name in group["names"]}
    assert scales == {name: 1.0 if name.startswith("heads.") else 0.1 for name, _parameter in model.named_parameters()}
    assert {group["lr_scale"] for group in Omnivore(small_omnivore(), seed).parameter_groups(0.05)} == {1.0}


@pytest.mark.parametrize(("old", "window"), [(3, (2, 5, 4)), (4, (1, 2, 2)), (7, (8, 12, 12))])
def test_tables_are_resampled_one_temporal_offset_at_a_time(old, window, seed):
    times, side = 2 * window[0] - 1, 2 * old - 1
    table = torch.randn(times * side**2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = []
    for time in range(times):
        grid = table[time * side**2 : (time + 1) * side**2].T.reshape(1, 3, side, side)
        resized = functional.interpolate(grid, size=(2 * window[1] - 1, 2 * window[2] - 1), mode="bicubic")
        rows.append(resized[0].flatten(1).T)
    torch.testing.assert_close(resized_offsets(table, window), torch.cat(rows))
    assert square_side(len(table), window[0]) == old and square_side(len(table) + 1, window[0]) is None
    with pytest.raises(ValueError, match=f"{len(table) + 1} offsets is of no square window of {window[0]} frames"):
        resized_offsets(torch.zeros(len(table) + 1, 3), window)


def stored(config, seed, tmp_path):
    state = Omnivore(config, seed).state_dict()
    torch.save(state, tmp_path / "joint.pth")
    return state, tmp_path / "joint.pth"


def test_heads_of_the_same_name_and_size_are_taken_and_others_start_afresh(tmp_path, seed):
    given, path = stored(small_omnivore(), seed, tmp_path)
    model = Omnivore(
        small_omnivore(image_sets={"image": 5, "pets": 7}, video_sets={"video": 9}, rgbd_sets={}), seed + 1
    )
    own = {name: value.clone() for name, value in model.state_dict().items()}
    assert start_from(model, path).endswith(
        "without 8 of its own (tokenizers.depth, heads.video, heads.rgbd); 4 start afresh (heads.pets, heads.video)"
    )
    for name, value in model.state_dict().items():
        source = own if name.startswith(("heads.pets.", "heads.video.")) else given
        assert torch.equal(value, source[name]), name


def test_a_model_that_learns_depth_later_has_a_new_tokenizer_for_it(tmp_path, seed):
    given, path = stored(small_omnivore(rgbd_sets={}, video_sets={}), seed, tmp_path)
    model = Omnivore(small_omnivore(image_sets={}, video_sets={}), seed + 1)
    assert "6 start afresh (tokenizers.depth, heads.rgbd)" in start_from(model, path)
    assert torch.equal(model.state_dict()["tokenizers.rgb.weight"], given["tokenizers.rgb.weight"])


def test_weights_of_another_window_are_resampled(tmp_path, seed):
    given, path = stored(small_omnivore(), seed, tmp_path)
    model = Omnivore(small_omnivore(window=(2, 6, 5)), seed + 1)
    assert start_from(model, path).endswith("0 start afresh; 4 tables of biases resampled for other windows")
    for name, value in model.state_dict().items():
        expected = resized_offsets(given[name], (2, 6, 5)) if name.endswith("bias_table") else given[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    longer = Omnivore(small_omnivore(window=(3, 3, 3)), seed)
    with pytest.raises(ValueError, match=r"bias_table is \(75, 2\), but \(125, 2\) here: configure the same sizes"):
        start_from(longer, path)


def test_a_released_file_of_another_window_is_resampled(seed):
    small, wide = small_omnivore(), small_omnivore(window=(2, 5, 5))
    state = Omnivore(small, seed).state_dict()
    official, index = to_official(state, small), "trunk.layers.0.blocks.0.attn.relative_position_index"
    ours = from_official(official, wide)
    for name, value in ours.items():
        expected = resized_offsets(state[name], wide.window) if name.endswith("bias_table") else state[name]
        assert torch.equal(value, expected), name
    Omnivore(wide).load_state_dict(ours)
    with pytest.raises(ValueError, match=f"{index} is not what follows"):
        from_official(official | {index: official[index].roll(1)}, wide)
    with pytest.raises(ValueError, match=r"has the shape \(75, 2\), not \(125, 2\)"):
        without = {key: value for key, value in official.items() if not key.endswith("_index")}
        from_official(without, small_omnivore(window=(3, 3, 3)))
