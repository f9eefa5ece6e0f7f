"""Features of a few centers carried to all points of a cloud (Qi et al. 2017, PointNet++, section 3.4).

    f(p) = sum_i w_i f(c_i) / sum_i w_i        w_i = 1 / (|p - c_i|^2 + 1e-8)

over the three centers c_i nearest to p. B batch, N points, G centers, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from omnitrunk.kernels.knn import knn

NEIGHBORS, EPSILON = 3, 1e-8


def interpolation_weights(points: Tensor, centers: Tensor) -> Tensor:
    """The matrix (B, N, G) that takes features of centers (B, G, 3) to points (B, N, 3); a row has three weights.

    Dense, so that it is applied by a matrix product: G is small, and the product of the backward pass adds up in one
    order, where a scatter would not. No gradient reaches the coordinates.
    """
    index, distance = knn(centers, points, min(NEIGHBORS, centers.shape[1]))
    weights = 1 / (distance + EPSILON)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.new_zeros(*index.shape[:2], centers.shape[1]).scatter_(2, index, weights)


def interpolate_features(weights: Tensor, features: Tensor) -> Tensor:
    """Weights (B, N, G) and features (B, G, C) -> (B, N, C)."""
    return torch.bmm(weights.to(features.dtype), features)
