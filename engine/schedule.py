"""Learning rates as one array per run, computed before the first step: a step reads its number and nothing else."""

from __future__ import annotations

import numpy as np


def warmup_cosine(
    base: float,
    final: float,
    steps: int,
    warmup: int,
    *,
    start: float = 0.0,
    cooldown: int = 0,
    end: float = 0.0,
) -> np.ndarray:
    """The value at every step, float64 (steps,): a straight warm-up to `base`, half a cosine to `final`, a cool-down.

    The warm-up begins at `start` and includes both of its ends, so `base` comes twice; the cosine stops one step short
    of `final` (MultiMAE, Bachmann et al. 2022, as released). The last `cooldown` steps go straight from `final` to one
    step short of `end` (Omnivore, Girdhar et al. 2022, as released). Raises ValueError when the phases do not fit.
    """
    if warmup < 0 or cooldown < 0 or warmup + cooldown > steps:
        also = f" and optimizer.cooldown_steps = {cooldown}" if cooldown else ""
        raise ValueError(f"optimizer.warmup_steps = {warmup}{also} must lie between 0 and run.steps = {steps}")
    middle = steps - warmup - cooldown
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(middle) / max(1, middle)))
    last = final + (end - final) * np.arange(cooldown) / max(1, cooldown)
    return np.concatenate([np.linspace(start, base, warmup), cosine, last])
