"""Arithmetic of a step, against what torch counts on the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omnitrunk.bench.flops import step_flops
from omnitrunk.bench.plain_multimae import PlainConfig, PlainMultiMAE, normalize
from omnitrunk.bench.sizes import SIZES, random_batch


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_flops_are_those_of_the_model(depth):
    """Counted on the model itself, forward and backward, as torch counts them."""
    config = replace(SIZES["tiny"].model, decoder_depth=depth)
    size = replace(SIZES["tiny"], model=config)
    model, images = PlainMultiMAE(config), normalize(random_batch(size, 0))
    with FlopCounterMode(display=False) as forward:
        predictions = model(images, model.draw_selection(size.batch))
    with FlopCounterMode(display=False) as backward:
        sum(prediction.sum() for prediction in predictions.values()).backward()
    flops = step_flops(config, least=False)
    assert flops.forward * size.batch == forward.get_total_flops()
    assert flops.backward * size.batch == backward.get_total_flops()
    assert step_flops(config, least=True).step < flops.step


def test_base_is_the_published_size():
    """22.34 GFLOP a sample and 97,917,072 trainable parameters."""
    assert step_flops(PlainConfig(), least=False).forward == pytest.approx(22.34e9, rel=5e-4)
    with torch.device("meta"):
        model = PlainMultiMAE(PlainConfig())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 97_917_072


def test_only_kept_patches_need_projecting():
    flops = [step_flops(SIZES["demo"].model, least=least).projection for least in (False, True)]
    assert flops[1] == pytest.approx(flops[0] * 32 / 192)
