"""Keyed Dirichlet draws, all samples at once: normalized Gamma variates, taken in logarithms.

Logarithms keep small concentrations exact, where the variates themselves would underflow to 0 / 0.
"""

from __future__ import annotations

import numpy as np

from omnitrunk.kernels.philox import uniform

# The rejection sampler accepts a proposal with a probability above 0.95, so eight fail once in 10^10 draws.
PROPOSALS = 8


def dirichlet(alphas: np.ndarray, *, seed: int, positions: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
    """Shares float64 (B, T), each row summing to 1, for concentrations (B, T) > 0 and positions int64 (B,).

    A row depends on (seed, its position) alone. `chosen` bool (B, T) leaves out entries, whose share is exactly 0.
    """
    draws = log_gamma_variates(alphas, seed=seed, positions=positions)
    if chosen is not None:
        draws = np.where(chosen, draws, -np.inf)
    weights = np.exp(draws - draws.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def log_gamma_variates(shapes: np.ndarray, *, seed: int, positions: np.ndarray) -> np.ndarray:
    """Logarithms of Gamma variates of the given shapes (B, T): Marsaglia and Tsang (2000), a rejection method.

    A variate of shape a is one of shape a + 1 times U^(1 / a), which brings every shape into the method's range.
    """
    per_draw = 3 * PROPOSALS + 1
    uniforms = 1 - uniform(seed, "dirichlet", positions, shapes.shape[1] * per_draw)  # in (0, 1], so logarithms exist
    uniforms = uniforms.reshape(*shapes.shape, per_draw)
    boost, radius, angle, height = np.split(uniforms, [1, 1 + PROPOSALS, 1 + 2 * PROPOSALS], axis=-1)
    normals = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
    center = (shapes + 1 - 1 / 3)[..., None]
    cubes = (1 + normals / np.sqrt(9 * center)) ** 3
    log_cubes = np.log(np.maximum(cubes, 1e-300))
    accepted = (cubes > 0) & (np.log(height) < 0.5 * normals**2 + center * (1 - cubes + log_cubes))
    first = accepted.argmax(axis=-1)[..., None]
    variates = np.log(center) + np.take_along_axis(log_cubes, first, axis=-1)
    return (variates + np.log(boost) / shapes[..., None])[..., 0]
