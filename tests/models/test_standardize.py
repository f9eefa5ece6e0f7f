from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.models.layers.standardize import robust_standardize


@pytest.mark.parametrize("shape", [(3, 10, 7, 1), (2, 8, 8, 2), (1, 3, 4, 1)])
def test_middle_of_each_sample_sets_the_scale(shape, seed):
    values = np.random.default_rng(seed).normal(5, 3, shape)
    values[0] = np.round(values[0])  # ties
    result = robust_standardize(torch.from_numpy(values))
    for sample in range(shape[0]):
        ordered = np.sort(values[sample].ravel())
        middle = ordered[int(0.1 * ordered.size) : int(0.9 * ordered.size)]
        expected = (values[sample] - middle.mean()) / np.sqrt(middle.var(ddof=1) + 1e-6)
        np.testing.assert_allclose(result[sample], expected, rtol=1e-10, atol=1e-10)


def test_outliers_do_not_set_the_scale_and_input_is_left_alone(seed):
    pixels = torch.rand(1, 16, 16, 1, generator=torch.Generator().manual_seed(seed))
    spoiled = pixels.clone()
    spoiled.flatten()[:20] = 1e6
    kept = spoiled.clone()
    assert robust_standardize(spoiled).flatten()[20:].abs().max() < 10
    assert torch.equal(spoiled, kept)


def test_constant_depth_is_zero():
    assert robust_standardize(torch.full((2, 4, 4, 1), 0.3)).abs().max() < 1e-3
