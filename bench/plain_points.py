"""Operations on point clouds as people write them in PyTorch, or with libraries for CPUs.

The peers of omnitrunk.kernels.farthest_point_sample, knn and chamfer, each written from its formula.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor


def farthest_point_sample(points: Tensor, count: int) -> Tensor:
    """Points (B, N, 3) -> picks int64 (B, count), one tensor operation after another for every pick."""
    clouds, size = points.shape[:2]
    rows = torch.arange(clouds, device=points.device)
    index = torch.zeros(clouds, count, dtype=torch.long, device=points.device)
    nearest = torch.full((clouds, size), torch.inf, device=points.device)
    farthest = index.new_zeros(clouds)
    for pick in range(count):
        index[:, pick] = farthest
        distance = (points - points[rows, farthest][:, None]).square().sum(-1)
        nearest = torch.minimum(nearest, distance)
        farthest = nearest.argmax(-1)
    return index


def farthest_by_scan(points: Tensor, count: int) -> Tensor:
    """The same by fpsample, which looks at all points for every pick."""
    import fpsample

    picks = [fpsample.fps_sampling(cloud, count, start_idx=0) for cloud in points.numpy()]
    return torch.from_numpy(np.stack(picks).astype(np.int64))


def farthest_by_buckets(points: Tensor, count: int) -> Tensor:
    """The same by fpsample, which sorts points into 2^5 buckets and passes over those that no pick comes near.

    Its first pick is a point of its own choice.
    """
    import fpsample

    picks = [fpsample.bucket_fps_kdline_sampling(cloud, count, 5) for cloud in points.numpy()]
    return torch.from_numpy(np.stack(picks).astype(np.int64))


def nearest_neighbors(points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Points (B, N, 3), queries (B, Q, 3) -> index int64 and squared distance (B, Q, k), by all distances and topk."""
    distance, index = torch.cdist(queries, points).topk(k, largest=False)
    return index, distance.square()


def neighbors_by_tree(points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same by a k-d tree for every cloud, of SciPy."""
    from scipy.spatial import cKDTree

    found = [cKDTree(cloud).query(at, k) for cloud, at in zip(points.numpy(), queries.numpy(), strict=True)]
    distance, index = (
        torch.from_numpy(np.stack(each).reshape(*queries.shape[:2], k)) for each in zip(*found, strict=True)
    )
    return index, distance.square().float()


def group_points(points: Tensor, centers: Tensor, k: int) -> Tensor:
    """Points (B, N, 3), centers (B, G, 3) -> neighbors minus their center (B, G, k, 3)."""
    index, _ = nearest_neighbors(points, centers, k)
    rows = torch.arange(len(points), device=points.device)[:, None, None]
    return points[rows, index] - centers[:, :, None]


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Sets (B, N, 3) and (B, M, 3) -> (B,) by a matrix of squared distances."""
    distance = (a[:, :, None] - b[:, None]).square().sum(-1)
    return distance.min(2).values.mean(1) + distance.min(1).values.mean(1)


def chamfer_by_cdist(a: Tensor, b: Tensor) -> Tensor:
    """The same with distances from a matrix product, which for near points leaves few of their digits."""
    distance = torch.cdist(a, b).square()
    return distance.min(2).values.mean(1) + distance.min(1).values.mean(1)


def installed(library: str, device: str) -> bool:
    """Whether a library that computes on CPUs is there for the measurement of `device`."""
    return device == "cpu" and find_spec(library) is not None
