from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnitrunk.models import make_plan
from omnitrunk.models.masking.mask_plan import sample_plan, visible_counts
from tests.models.small import random_ids, small_config


@st.composite
def configs_and_ids(draw):
    inputs = tuple(draw(st.permutations(("rgb", "depth", "semseg")))[: draw(st.integers(1, 3))])
    image = (8 * draw(st.integers(1, 3)), 8 * draw(st.integers(1, 3)))
    total = len(inputs) * image[0] * image[1] // 64
    config = small_config(
        inputs=inputs,
        image_size=image,
        keep=draw(st.integers(1, total)),
        global_tokens=draw(st.integers(0, 2)),
        loss_on_unmasked=draw(st.booleans()),
    )
    return config, random_ids(config, draw(st.integers(1, 4)), draw(st.integers(0, 2**32)))


@given(configs_and_ids())
@settings(max_examples=60, deadline=None)
def test_a_plan_is_consistent(drawn):
    config, ids = drawn
    batch, keep = ids.shape
    plan = make_plan(config, ids)
    assert torch.equal((~plan.mask).sum(1), torch.full((batch,), keep))
    names, offset, rows, slot_names = [], 0, [], {}
    for name in config.inputs:
        count = config.tokens(name)
        shown = torch.zeros(batch * count, dtype=torch.bool)
        shown[plan.visible[name]] = True
        assert torch.equal(shown.view(batch, count), ~plan.mask[:, offset : offset + count])
        rows += [(name, row) for row in plan.visible[name].tolist()]
        slot_names |= dict.fromkeys(plan.slots[name].tolist(), name)
        names += [(name, row) for row in range(count)]
        offset += count
    rows += [("global", row) for row in range(batch * config.global_tokens)]
    buffer = [rows[place] for place in plan.order.tolist()]
    length = keep + config.global_tokens
    for sample in range(batch):
        mine = buffer[sample * length : (sample + 1) * length]
        for token, (name, row) in zip(ids[sample], mine, strict=False):
            assert (name, row % config.tokens(name)) == names[token] and row // config.tokens(name) == sample
        first = sample * config.global_tokens
        assert mine[keep:] == [("global", first + number) for number in range(config.global_tokens)]
    for slot, membership in enumerate(plan.membership.tolist()):
        expected = [float(slot_names.get(slot) == name) for name in config.inputs]
        assert membership == expected and (slot in slot_names) == (slot % length < keep)


@given(configs_and_ids())
@settings(max_examples=60, deadline=None)
def test_weights_are_a_mean_over_samples_of_means_over_scored_rows(drawn):
    config, ids = drawn
    plan = make_plan(config, ids)
    for output in config.outputs:
        source, count = config.masked_like(output), config.tokens(output)
        everything = source is None or config.loss_on_unmasked
        hidden = torch.ones(len(ids), count, dtype=torch.bool)
        if not everything:
            offset = sum(config.tokens(name) for name in config.inputs[: config.inputs.index(source)])
            hidden = plan.mask[:, offset : offset + count]
        rows, weight = plan.masked[output], plan.masked_weight[output]
        assert torch.equal(rows, hidden.flatten().nonzero().flatten())
        means = [1 / hidden[sample].sum().item() for sample in range(len(ids)) if hidden[sample].any()]
        expected = [means_of / len(means) for means_of in means for _ in range(round(1 / means_of))]
        torch.testing.assert_close(weight, torch.tensor(expected))


@pytest.mark.parametrize("changes", [{}, {"alphas": 0.05}, {"sample_tasks_uniformly": True}, {"keep": 40}])
@pytest.mark.parametrize("faithful", [False, True])
def test_sampling_is_keyed_by_seed_and_position(changes, faithful, seed):
    config = small_config(drop_path=0.3, faithful=faithful, position_size=32 if faithful else None, **changes)
    positions = np.array([5, 3, 900_000_000_000, 0])
    plan, again = sample_plan(config, seed, positions), sample_plan(config, seed, positions[::-1])
    assert torch.equal(plan.ids_keep, again.ids_keep.flip(0))
    assert torch.equal(plan.drop_scale, again.drop_scale.flip(1))
    many = np.arange(50)
    assert not torch.equal(sample_plan(config, seed, many).ids_keep, sample_plan(config, seed + 1, many).ids_keep)


def test_order_is_sorted_by_default_and_shuffled_when_faithful(seed):
    plan = sample_plan(small_config(), seed, np.arange(20))
    assert (plan.ids_keep.diff(dim=1) > 0).all()
    shuffled = sample_plan(small_config(faithful=True, position_size=32), seed, np.arange(20))
    assert torch.equal(shuffled.ids_keep.sort(1).values, plan.ids_keep)
    assert (shuffled.ids_keep.diff(dim=1) < 0).any()


def test_counts_follow_the_dirichlet_distribution(seed):
    config, draws = small_config(image_size=112, keep=98), 20_000
    counts = visible_counts(config, seed, np.arange(draws))
    np.testing.assert_allclose(counts.mean(0), 98 / 3, atol=5 * 23.1 / draws**0.5)
    np.testing.assert_allclose(counts.std(0), 98 * (1 / 18) ** 0.5, rtol=0.03)
    totals = counts.sum(1)
    assert set(np.unique(totals)) <= {97, 98, 99} and 0.22 < (totals != 98).mean() < 0.28


def test_uniform_task_sampling_takes_every_subset_equally_often(seed):
    config, draws = small_config(sample_tasks_uniformly=True), 14_000
    present = visible_counts(config, seed, np.arange(draws)) > 0
    alone = [(present == np.eye(3, dtype=bool)[task]).all(1).mean() for task in range(3)]
    # One subset in seven holds a task alone; in larger ones the others round to 0 tokens now and then.
    assert all(1 / 7 - 0.015 < share < 1 / 7 + 0.06 for share in alone)
    assert present.any(1).all()


def test_drop_path_rises_over_the_depth_and_keeps_the_mean(seed):
    config = small_config(depth=4, drop_path=0.6)
    scale = sample_plan(config, seed, np.arange(8000)).drop_scale
    assert scale.shape == (8, 8000) and scale.dtype == torch.float32
    torch.testing.assert_close(scale.mean(1), torch.ones(8), rtol=0, atol=0.08)
    dropped = (scale == 0).float().mean(1)
    torch.testing.assert_close(dropped, torch.tensor([0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6]), rtol=0, atol=0.035)
    assert sample_plan(small_config(), seed, np.arange(4)).drop_scale is None


def test_moving_a_plan_keeps_what_it_shares(seed):
    plan = sample_plan(small_config(), seed, np.arange(4))
    moved = plan.to("meta")
    assert moved.masked["rgb"] is moved.masked["norm_rgb"] and moved.masked["rgb"].device.type == "meta"
    assert moved.drop_scale is None and moved.ids_keep.shape == plan.ids_keep.shape


def test_impossible_ids_are_refused():
    config = small_config()
    with pytest.raises(ValueError, match="twice"):
        make_plan(config, np.array([[1, 1]]))
    with pytest.raises(ValueError, match=r"tokens in 0..47"):
        make_plan(config, np.array([[48]]))
