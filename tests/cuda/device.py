"""The CUDA kernels on a GPU, with the interface of twin.py: tensors go there and back, every call is made twice."""

from __future__ import annotations

import torch

from omnitrunk.kernels import cuda


def _twice(function, *arguments):
    moved = [x.cuda() if isinstance(x, torch.Tensor) else x for x in arguments]
    first, second = (function(*moved) for _ in range(2))
    several = isinstance(first, tuple)
    for x, y in zip(first, second, strict=True) if several else [(first, second)]:
        # As bytes, since NaN differs from itself.
        assert torch.equal(x.view(torch.uint8), y.view(torch.uint8)), "two runs differ"
    return tuple(x.cpu() for x in first) if several else first.cpu()


def farthest_point_sample(points, count, offsets=None, start=None, pointnet2=False):
    return _twice(cuda.cuda_farthest_point_sample, points, count, offsets, start, pointnet2)


def nearest_neighbors(points, queries, k, offsets=None, query_offsets=None):
    arguments = (points, queries, k, offsets, query_offsets)
    return *_twice(cuda.cuda_nearest_neighbors, *arguments), _twice(cuda.cuda_group_points, *arguments)


def chamfer(a, b, offsets_a=None, offsets_b=None, root=False):
    return _twice(cuda.cuda_chamfer, a, b, offsets_a, offsets_b, root, True)
