from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.models.masking.dirichlet import dirichlet, log_gamma_variates

DRAWS = 60_000


@pytest.mark.parametrize("shape", [0.2, 1.0, 7.5])
def test_gamma_variates_have_the_gamma_distribution(shape, seed):
    logarithms = log_gamma_variates(np.full((DRAWS, 1), shape), seed=seed, positions=np.arange(DRAWS))[:, 0]
    variates = torch.from_numpy(np.sort(np.exp(logarithms)))
    found = torch.special.gammainc(torch.tensor(shape, dtype=torch.float64), variates)
    distance = (found - (torch.arange(DRAWS) + 0.5) / DRAWS).abs().max()
    # Kolmogorov and Smirnov: a distance of 2.6 / sqrt(n) happens once in a million.
    assert distance < 2.6 / DRAWS**0.5


def test_dirichlet_moments_and_keys(seed):
    alphas = np.array([0.5, 1.0, 2.5])
    shares = dirichlet(np.broadcast_to(alphas, (DRAWS, 3)), seed=seed, positions=np.arange(DRAWS))
    np.testing.assert_allclose(shares.sum(1), 1)
    mean = alphas / alphas.sum()
    np.testing.assert_allclose(shares.mean(0), mean, atol=0.01)
    np.testing.assert_allclose(shares.var(0), mean * (1 - mean) / (alphas.sum() + 1), atol=0.003)
    one = dirichlet(alphas[None], seed=seed, positions=np.array([1234]))
    np.testing.assert_array_equal(one[0], shares[1234])


def test_tiny_concentrations_and_left_out_entries(seed):
    shares = dirichlet(np.full((1000, 4), 1e-4), seed=seed, positions=np.arange(1000))
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(1), 1)
    assert (shares.max(1) > 0.99).mean() > 0.98
    chosen = np.random.default_rng(seed).random((1000, 4)) < 0.5
    chosen[:, 0] = True
    shares = dirichlet(np.ones((1000, 4)), seed=seed, positions=np.arange(1000), chosen=chosen)
    assert ((shares > 0) == chosen).all()
