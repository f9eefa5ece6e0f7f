"""Learning rates as one array per run, computed before the first step: a step reads its number and nothing else."""

from __future__ import annotations

import numpy as np


def warmup_cosine(base: float, final: float, steps: int, warmup: int) -> np.ndarray:
    """The value at every step, float64 (steps,): a straight warm-up from 0 to `base`, then half a cosine to `final`.

    The warm-up includes both of its ends, so the first step gets 0 and `base` comes twice; the cosine stops one step
    short of `final` (MultiMAE, Bachmann et al. 2022, as released). Raises ValueError when the warm-up does not fit.
    """
    if not 0 <= warmup <= steps:
        raise ValueError(f"optimizer.warmup_steps = {warmup} must lie between 0 and run.steps = {steps}")
    phase = np.arange(steps - warmup) / max(1, steps - warmup)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * phase))
    return np.concatenate([np.linspace(0, base, warmup), cosine])
