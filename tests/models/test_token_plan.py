from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.models import make_token_plan
from omnitrunk.models.masking.token_plan import flat_rows


def test_visible_and_masked_share_out_the_tokens(seed):
    keep = np.stack([np.random.default_rng(seed + sample).permutation(9)[:4] for sample in range(3)])
    plan = make_token_plan(keep, 9)
    assert plan.keep.tolist() == keep.tolist()
    for visible, masked, mask in zip(plan.keep.tolist(), plan.masked.tolist(), plan.mask, strict=True):
        assert masked == sorted(set(range(9)) - set(visible))
        assert mask.nonzero().flatten().tolist() == masked


@pytest.mark.parametrize(
    ("keep", "words"),
    [([[0, 0]], "names a token twice"), ([[0, 9]], "tokens in 0..8"), ([0, 1], r"its shape is \(2,\)")],
)
def test_impossible_plans_are_refused(keep, words):
    with pytest.raises(ValueError, match=words):
        make_token_plan(np.array(keep), 9)


def test_a_plan_moves_as_a_whole(seed):
    scale = torch.rand(4, 2, generator=torch.Generator().manual_seed(seed))
    plan = make_token_plan(np.array([[2, 0], [1, 2]]), 3, drop_scale=scale)
    moved = plan.to("meta")
    assert moved.keep.is_meta and moved.masked.is_meta and moved.drop_scale.is_meta
    assert moved.decoder_drop_scale is None and type(moved) is type(plan)
    assert torch.equal(plan.to("cpu").keep, plan.keep)


def test_flat_rows_pick_from_every_sample(seed):
    buffer = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(seed))
    index = torch.tensor([[4, 0], [1, 1], [2, 3]])
    expected = torch.stack([sample[places] for sample, places in zip(buffer, index, strict=True)])
    assert torch.equal(buffer.flatten(0, 1)[flat_rows(index, 5)].unflatten(0, (3, 2)), expected)
