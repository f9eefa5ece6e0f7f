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


def test_the_release_of_omnivore():
    """Sampled values of its schedule, by the fraction of the run that is done; warm-ups differ by less than a step."""
    steps, warmup = 20_000, 2_000
    found = warmup_cosine(2e-3, 2e-4, steps, warmup, start=2e-6, cooldown=2_000, end=1e-6)
    released = {0.0: 2e-6, 0.2: 0.001931491579260158, 0.5: 0.0011, 0.899: 0.00020000693955667652, 0.9: 2e-4}
    released |= {0.901: 0.00019801, 0.95: 0.0001005, 0.99: 2.09e-5, 0.9999: 1.199e-06}
    for fraction, rate in released.items():
        assert found[round(fraction * steps)] == pytest.approx(rate, rel=1e-6), fraction
    assert found[1000] == pytest.approx(0.001001, abs=2e-3 / warmup)


def test_phases_must_fit():
    with pytest.raises(ValueError, match=r"warmup_steps = 3 and optimizer\.cooldown_steps = 3 must lie between 0 and"):
        warmup_cosine(1.0, 0.0, 5, 3, cooldown=3)
