from __future__ import annotations

import pytest
import torch

from omnitrunk.models.layers.propagation import interpolate_features, interpolation_weights


def one_by_one(points, centers, features):
    """Point by point, over all distances, in float64."""
    rows = []
    for cloud, around, values in zip(points.double(), centers.double(), features.double(), strict=True):
        for point in cloud:
            squared = (around - point).square().sum(1)
            nearest = sorted(range(len(around)), key=lambda i: (squared[i].item(), i))[:3]
            shares = torch.stack([1 / (squared[i] + 1e-8) for i in nearest])
            rows.append(sum(share * values[i] for share, i in zip(shares, nearest, strict=True)) / shares.sum())
    return torch.stack(rows).unflatten(0, points.shape[:2])


@pytest.mark.parametrize(
    ("groups", "dtype"), [(9, torch.float64), (9, torch.float32), (3, torch.float64), (2, torch.float64)]
)
def test_features_come_from_the_three_nearest_centers(groups, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    points, centers, features = (
        torch.randn(2, count, channels, generator=generator, dtype=dtype)
        for count, channels in ((20, 3), (groups, 3), (groups, 5))
    )
    weights = interpolation_weights(points, centers)
    assert weights.shape == (2, 20, groups) and (weights > 0).sum(2).eq(min(3, groups)).all()
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    expected = one_by_one(points, centers, features)
    torch.testing.assert_close(interpolate_features(weights, features).double(), expected, **tolerance)


def test_at_a_center_a_point_has_its_features_and_constants_stay(seed):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(1, 6, 3, generator=generator, dtype=torch.float64)
    weights = interpolation_weights(centers, centers)
    torch.testing.assert_close(weights, torch.eye(6, dtype=torch.float64)[None], rtol=0, atol=1e-5)
    between = interpolation_weights(torch.rand(1, 8, 3, generator=generator, dtype=torch.float64), centers)
    torch.testing.assert_close(between.sum(2), torch.ones(1, 8, dtype=torch.float64))


def test_gradients_reach_the_features(seed):
    generator = torch.Generator().manual_seed(seed)
    points, centers = (torch.randn(2, count, 3, generator=generator, dtype=torch.float64) for count in (5, 4))
    features = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = interpolation_weights(points, centers)
    assert torch.autograd.gradcheck(lambda values: interpolate_features(weights, values), features)
