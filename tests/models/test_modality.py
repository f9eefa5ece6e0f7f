from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.models import MODALITIES, Modality, MultiMAE, register
from tests.models.small import random_batch, small_config


@pytest.fixture
def thermal():
    yield register(Modality(name="thermal", kind="pixels", channels=2, stride=2, loss="l1", standardize="robust"))
    del MODALITIES["thermal"]


def test_one_entry_makes_a_modality_that_trains(thermal, seed):
    config = small_config(inputs=("rgb", "thermal"), outputs=("thermal", "norm_rgb"))
    model, batch = MultiMAE(config, seed), random_batch(config, 3, seed)
    batch["thermal"] = torch.rand(3, 16, 16, 2, generator=torch.Generator().manual_seed(seed))
    plan = model.plan(seed, np.arange(3))
    optimizer = torch.optim.AdamW(model.parameter_groups(0.0), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = model(batch, plan)
        optimizer.zero_grad()
        loss["loss"].backward()
        optimizer.step()
        losses.append(loss["thermal"].item())
    assert losses[-1] < losses[0]
    assert model.tokenizers["thermal"].weight.grad.abs().sum() > 0
    assert model.predict(batch, plan)["thermal"].shape == (3, 16, 4 * 4 * 2)


def test_names_are_unique_and_sources_known():
    with pytest.raises(ValueError, match="registered already"):
        register(Modality(name="rgb", kind="pixels"))
    with pytest.raises(ValueError, match="did you mean 'depth'"):
        register(Modality(name="norm_depth", kind="pixels", source="deth"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "not a name", "kind": "pixels"}, "no identifier"),
        ({"name": "x", "kind": "classes"}, "set loss to cross_entropy"),
        ({"name": "x", "kind": "pixels", "loss": "cross_entropy"}, "set loss to mse or l1"),
        ({"name": "x", "kind": "pixels", "stride": 0}, "1 or more"),
        ({"name": "x", "kind": "pixels", "channels": 2, "mean": (0.1,), "std": (1.0,)}, "with 2 values each"),
        ({"name": "x", "kind": "pixels", "mean": (0.1,)}, "give mean and std both"),
    ],
)
def test_impossible_modalities_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Modality(**fields)
