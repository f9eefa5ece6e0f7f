"""Point clouds: Point-MAE's centers, its groups around them and its loss, and the same at larger sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from omnitrunk.bench import plain_points
from omnitrunk.bench.case import OURS, Case, Run, random
from omnitrunk.kernels import chamfer, farthest_point_sample, group_points, knn
from omnitrunk.kernels.chamfer import cost as chamfer_cost
from omnitrunk.kernels.farthest_point_sample import cost as sample_cost
from omnitrunk.kernels.knn import cost as neighbor_cost

SAMPLED = ((128, 1024, 64), (8, 4096, 1024), (32, 8192, 512))
"""(clouds, points, picks)"""
SEARCHED = ((128, 1024, 64), (8, 8192, 512))
"""(clouds, points, queries)"""
COMPARED = ((4864, 32), (8, 2048))
"""(pairs of sets, points of each set)"""
NEIGHBORS = 32


def sample_cases(device: str, quick: bool) -> list[Case]:
    """Farthest point sampling."""
    return [_sample_case(device, *sizes) for sizes in (((4, 512, 32),) if quick else SAMPLED)]


def _sample_case(device: str, clouds: int, points: int, count: int) -> Case:
    contenders = {
        OURS: lambda cloud: farthest_point_sample(cloud, count),
        "torch, a loop": lambda cloud: plain_points.farthest_point_sample(cloud, count),
    }
    if plain_points.installed("fpsample", device):
        contenders["fpsample"] = lambda cloud: plain_points.farthest_by_scan(cloud, count)
        contenders["fpsample, buckets"] = lambda cloud: plain_points.farthest_by_buckets(cloud, count)
    return Case(
        operation="farthest_point_sample",
        shape=f"{clouds} x {count} of {points} points",
        inputs=lambda seed: (_points(seed, device, clouds, points),),
        contenders=contenders,
        forward=sample_cost(clouds, points, count),
    )


def neighbor_cases(device: str, quick: bool) -> list[Case]:
    """Nearest neighbors of queries."""
    contenders = {OURS: knn, "torch, cdist and topk": plain_points.nearest_neighbors}
    if plain_points.installed("scipy", device):
        contenders["scipy, a tree"] = plain_points.neighbors_by_tree
    return _search_cases("knn", device, quick, contenders)


def group_cases(device: str, quick: bool) -> list[Case]:
    """The same neighbors, relative to their centers."""
    contenders = {OURS: group_points, "torch, cdist, topk and gather": plain_points.group_points}
    return _search_cases("group_points", device, quick, contenders)


def _search_cases(operation: str, device: str, quick: bool, contenders: dict[str, Run]) -> list[Case]:
    return [_search_case(operation, device, contenders, *sizes) for sizes in (((4, 256, 16),) if quick else SEARCHED)]


def _search_case(
    operation: str, device: str, contenders: dict[str, Run], clouds: int, points: int, queries: int
) -> Case:
    def inputs(seed: int) -> tuple:
        cloud = _points(seed, device, clouds, points)
        return cloud, cloud[:, :queries].contiguous(), NEIGHBORS

    return Case(
        operation=operation,
        shape=f"{clouds} x {queries} in {points} points, k = {NEIGHBORS}",
        inputs=inputs,
        contenders=contenders,
        forward=neighbor_cost(clouds, points, queries, NEIGHBORS),
    )


def chamfer_cases(device: str, quick: bool) -> list[Case]:
    """The Chamfer distance of sets of one size, with gradients for both sides."""
    return [_chamfer_case(device, *sizes) for sizes in (((64, 32),) if quick else COMPARED)]


def _chamfer_case(device: str, sets: int, points: int) -> Case:
    return Case(
        operation="chamfer",
        shape=f"{sets} x {points} to {points} points",
        inputs=lambda seed: tuple(_points(2 * seed + side, device, sets, points, grad=True) for side in range(2)),
        contenders={
            OURS: chamfer,
            "torch, all differences": plain_points.chamfer,
            "torch, cdist": plain_points.chamfer_by_cdist,
        },
        forward=chamfer_cost(sets, points, points),
        backward=chamfer_cost(sets, points, points, backward=True),
        definition=plain_points.chamfer_by_cdist,
    )


def _points(seed: int, device: str, clouds: int, points: int, *, grad: bool = False) -> Tensor:
    return random(seed, clouds, points, 3, dtype=torch.float32, device=device, grad=grad)
