from __future__ import annotations

import numpy as np
import torch

from omnitrunk.models import make_plan
from tests.models.slow import slow_losses
from tests.models.small import double_batch, double_model, random_batch, small_config


def faithful(**changes):
    return small_config(faithful=True, position_size=32, **changes)


def test_a_fully_visible_sample_has_a_right_loss_and_a_nan_gradient(seed):
    config = faithful(keep=20)
    model, batch = double_model(config, seed), double_batch(random_batch(config, 2, seed))
    ids = np.stack([np.r_[0:16, 20:24], np.r_[0:10, 16:26]])  # the first sample sees all of rgb and none of semseg
    losses, expected = model(batch, make_plan(config, ids)), slow_losses(model, batch, ids)
    for output in config.outputs:
        torch.testing.assert_close(losses[output], expected[output], rtol=1e-6, atol=1e-6)
    losses["loss"].backward()
    poisoned = {name for name, parameter in model.named_parameters() if parameter.grad.isnan().any()}
    assert {"global_tokens", "tokenizers.rgb.weight", "tokenizers.depth.bias", "decoders.rgb.out.weight"} <= poisoned
    assert not any(name.startswith(("decoders.depth.", "decoders.semseg.")) for name in poisoned)
    assert not any(name.startswith("tokenizers.semseg.") for name in poisoned), "the other sample's alone"


def test_nothing_masked_is_a_constant_that_gives_its_decoder_no_gradient(seed):
    config = faithful(keep=16)
    model, batch = double_model(config, seed), double_batch(random_batch(config, 2, seed))
    losses = model(batch, make_plan(config, np.tile(np.arange(16), (2, 1))))
    assert losses["rgb"] == 0 and losses["norm_rgb"] == 0 and losses["depth"] > 0
    losses["loss"].backward()
    assert model.decoders["rgb"].out.weight.grad is None
    assert all(parameter.grad.isfinite().all() for parameter in model.decoders["depth"].parameters())
