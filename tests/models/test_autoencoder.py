"""A fifth system in one small file: rows of numbers, cut into segments, whose positions are learned from the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import nn

from omnitrunk.models import MaskedAutoencoder
from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.decoders.append import AppendDecoder
from omnitrunk.models.layers.blocks import Linear, QkvBias
from omnitrunk.models.masking.policies import random_tokens
from omnitrunk.models.masking.token_plan import flat_rows


class Segments(nn.Module):
    """The tokenizer, and with `values` left out of it, the positions."""

    def __init__(self, inputs, width):
        super().__init__()
        self.project = Linear(inputs, width)

    def prepare(self, tensors):
        return {"segments": tensors["signal"].unflatten(1, (-1, self.project.weight.shape[1]))}

    def forward(self, sample, index):
        rows = sample["segments"].flatten(0, 1)[flat_rows(index, sample["segments"].shape[1])]
        return self.project(rows).unflatten(0, index.shape)

    def flops(self, samples, rows):
        return 2 * rows * self.project.weight.numel()


class SegmentError:
    def __call__(self, prediction, sample, masked):
        segments = sample["segments"]
        return (prediction - segments.flatten(0, 1)[flat_rows(masked, segments.shape[1])]).square().mean()


@dataclass(frozen=True, kw_only=True)
class SignalConfig(AutoencoderConfig):
    system: Literal["signal"] = "signal"
    samples: int = 40
    segment: int = 4
    width: int = 8
    depth: int = 2
    heads: int = 2
    decoder_width: int = 8
    decoder_depth: int = 2
    decoder_heads: int = 2

    qkv_bias: ClassVar[QkvBias] = "none"
    norm_epsilon: ClassVar[float] = 1e-5
    inputs = outputs = ("signal",)

    @property
    def total_tokens(self):
        return self.samples // self.segment

    @property
    def keep(self):
        return self.total_tokens - int(self.mask_ratio * self.total_tokens)

    def check_sizes(self):
        assert self.samples % self.segment == 0

    def visible_tokens(self, seed, positions):
        return random_tokens(self.total_tokens, self.keep, seed=seed, positions=positions)

    def build_tokenizer(self):
        return Segments(self.segment, self.width)

    def build_block_positions(self):
        return Segments(self.segment, self.width)

    def build_decoder(self):
        return AppendDecoder(self, Segments(self.segment, self.decoder_width), self.segment)

    def build_objective(self):
        return SegmentError()


def signals(batch, seed):
    phases = 6 * torch.rand(batch, 1, generator=torch.Generator().manual_seed(seed))
    return {"signal": torch.sin(phases + torch.arange(40) / 3)}


def test_it_trains(seed):
    model = MaskedAutoencoder(SignalConfig(drop_path=0.2, decoder_drop_path=0.2), seed)
    optimizer = torch.optim.AdamW(model.parameter_groups(0.01), lr=3e-3)
    losses = []
    for step in range(40):
        loss = model(signals(16, seed + step), model.plan(seed, np.arange(16 * step, 16 * step + 16)))
        assert set(loss) == {"signal", "loss"}
        optimizer.zero_grad()
        loss["loss"].backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss["loss"].item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_drop_path_of_trunk_and_decoder_are_drawn_apart(seed):
    model = MaskedAutoencoder(SignalConfig(drop_path=0.5, decoder_drop_path=0.5), seed)
    plan = model.plan(seed, np.arange(64))
    assert plan.drop_scale.shape == plan.decoder_drop_scale.shape == (4, 64)
    assert set(plan.drop_scale[2:].flatten().tolist()) == {0.0, 2.0} and (plan.drop_scale[:2] == 1).all()
    assert not torch.equal(plan.drop_scale, plan.decoder_drop_scale)
    again = model.plan(seed, np.array([7, 5]))
    assert torch.equal(again.drop_scale, plan.drop_scale[:, [7, 5]])
    batch = {name: tensor.repeat(4, 1) for name, tensor in signals(16, seed).items()}
    rows = model.predict(batch, plan)["signal"]
    assert torch.equal(rows.isnan().all(dim=2), ~plan.mask)
    assert MaskedAutoencoder(SignalConfig(), seed).plan(seed, np.arange(2)).drop_scale is None


def test_the_seed_decides_the_weights(seed):
    first, again, other = (MaskedAutoencoder(SignalConfig(), number).state_dict() for number in (seed, seed, seed + 1))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["decoder.mask_token"], other["decoder.mask_token"])


def test_a_configuration_without_its_parts_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        AutoencoderConfig()
