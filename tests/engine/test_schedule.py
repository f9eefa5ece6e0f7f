from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from omnitrunk.engine.schedule import warmup_cosine

FIXTURE = Path(__file__).parents[1] / "fixtures" / "multimae" / "optim.json"
SCHEDULES = json.loads(FIXTURE.read_text(encoding="utf-8"))["schedules"]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: f"{len(schedule['values'])} steps")
def test_published_values(schedule):
    arguments = schedule["args"]
    per_epoch = arguments["niter_per_ep"]
    warmup = arguments.get("warmup_steps", arguments.get("warmup_epochs", 0) * per_epoch)
    steps = arguments["epochs"] * per_epoch
    found = warmup_cosine(arguments["base_value"], arguments["final_value"], steps, warmup)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, schedule["values"], rtol=1e-14, atol=1e-18)


def test_closed_form(seed):
    random = np.random.default_rng(seed)
    steps = int(random.integers(2, 200))
    warmup = int(random.integers(0, steps + 1))
    base, final = random.uniform(0.1, 1), random.uniform(0, 0.1)
    found = warmup_cosine(base, final, steps, warmup)
    for step in range(steps):
        if step < warmup:
            expected = base * step / max(1, warmup - 1)
        else:
            expected = final + (base - final) * np.cos(np.pi / 2 * (step - warmup) / (steps - warmup)) ** 2
        assert found[step] == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_warmup_must_fit():
    with pytest.raises(ValueError, match="warmup_steps = 6 must lie between 0 and"):
        warmup_cosine(1.0, 0.0, 5, 6)
