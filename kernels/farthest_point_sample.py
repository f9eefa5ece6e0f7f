"""farthest_point_sample: points spread over a cloud, each the farthest from all that were picked before it.

    pick[0] = start,  pick[i + 1] = argmax_n min_{j <= i} |points[n] - points[pick[j]]|^2

The lowest index wins among equals. Squared distances are those of knn, so that all backends agree bit for bit in
float32. Two consequences, both deterministic: duplicates of a point are picked only after everything else; and once
all distances are 0 the first point is picked again and again.
A point with a coordinate that is NaN or infinite is never picked, except as the start, and then does not count as a
pick that others are far from; where no point can be picked, index 0 is.
Sources: Eldar et al. 1997; Qi et al. 2017 (PointNet++), section 3.2; Pang et al. 2022 (Point-MAE), section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from omnitrunk.kernels import cuda, native_points
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.knn import check_dtypes, checked_offsets, clouds_of, fewest, refuses, squared_distance

POINTNET2_RADIUS = 1e-3
"""Squared norm up to which `pointnet2` leaves points out."""


def cost(clouds: int, points: int, count: int, *, bytes_per_number: int = 4) -> Cost:
    """Least work for `count` picks from each of `clouds` clouds of `points` points; the picks follow one another.

    Points are read once and stay on chip. A pick takes 8 FLOP a point for the distance, then a minimum and a maximum.
    """
    bytes_per_cloud = 3 * points * bytes_per_number + 8 * count
    return Cost(bytes=clouds * bytes_per_cloud, flop=10 * clouds * points * max(count - 1, 0))


def _sample(points: Tensor, count: int, start: Tensor, pointnet2: bool) -> Tensor:
    """Points (B, N, 3), start int64 (B,) -> index (B, count)."""
    eligible = points.isfinite().all(-1)
    if pointnet2:
        eligible &= squared_distance(points, torch.zeros_like(points)) > points.new_tensor(POINTNET2_RADIUS)
    # Less than any distance: never the maximum where there is another.
    nearest = torch.where(eligible, points.new_tensor(torch.inf), points.new_tensor(-1.0))
    picks = [start]
    while len(picks) < count:
        at = points.take_along_dim(picks[-1][:, None, None], 1)
        nearest = nearest.fmin(squared_distance(points, at))
        picks.append(nearest.argmax(1))
    return torch.stack(picks[:count], 1) if count else start.new_empty(len(start), 0)


def reference(points: Tensor, count: int, offsets: Tensor | None, start: Tensor | None, pointnet2: bool) -> Tensor:
    """The definition; see the module's text."""
    clouds = len(points) if offsets is None else len(offsets) - 1
    first = torch.zeros(clouds, dtype=torch.int64, device=points.device) if start is None else start
    if offsets is None:
        return _sample(points, count, first, pointnet2)
    index = first.new_empty(clouds, count)
    for cloud, at, row in zip(clouds_of(points, offsets), first, index, strict=True):
        row.copy_(_sample(cloud[None], count, at[None], pointnet2)[0])
    return index


OPERATION = Operation("farthest_point_sample", reference)


@OPERATION.backend(
    "cuda",
    devices=("cuda",),
    why="a block keeps its cloud in registers from pick to pick",
    missing=cuda.missing_reason,
    refuses=refuses,
)
def _cuda(points: Tensor, count: int, offsets: Tensor | None, start: Tensor | None, pointnet2: bool) -> Tensor:
    return cuda.cuda_farthest_point_sample(points.contiguous(), count, offsets, start, pointnet2)


@OPERATION.backend(
    "cpu",
    devices=("cpu",),
    why="one pass over a cloud per pick, in the cache",
    missing=native_points.missing_reason,
    refuses=refuses,
)
def _cpu(points: Tensor, count: int, offsets: Tensor | None, start: Tensor | None, pointnet2: bool) -> Tensor:
    return native_points.native_farthest_point_sample(points.contiguous(), count, offsets, start, pointnet2)


def farthest_point_sample(
    points: Tensor,
    count: int,
    *,
    cu_seqlens: Tensor | None = None,
    start: Tensor | None = None,
    pointnet2: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Pick `count` points of every cloud that are far from each other.

    points float32 or float64 (B, N, 3) or, with cu_seqlens (B + 1,), (total, 3); start int64 (B,), the first picks,
    index 0 when left out -> index int64 (B, count) within the cloud. `pointnet2` picks what the extension pointnet2_ops
    does, for models trained with it: always from index 0, and never a point whose squared norm is 1e-3 or less. (Among
    equal distances, which duplicates have, the extension takes an order of its own.) Raises ValueError where shapes do
    not fit, a cloud is empty or a start is not in its cloud; values of cu_seqlens and start are not looked at on a GPU.
    """
    check_dtypes(points)
    offsets = checked_offsets("points", points, cu_seqlens)
    if count < 0:
        raise ValueError(f"count must be 0 or more, not {count}")
    if fewest(points, offsets) == 0:
        raise ValueError("farthest_point_sample needs at least one point in every cloud: leave empty clouds out")
    if start is not None:
        start = _checked_start(start, points, offsets, pointnet2)
    return OPERATION.run(backend, points.detach(), count, offsets, start, pointnet2)


def _checked_start(start: Tensor, points: Tensor, offsets: Tensor | None, pointnet2: bool) -> Tensor:
    clouds = len(points) if offsets is None else len(offsets) - 1
    if pointnet2:
        raise ValueError("pointnet2 always starts at index 0: leave start out")
    if start.dtype != torch.int64 or start.shape != (clouds,) or start.device != points.device:
        given = f"{start.dtype} of {tuple(start.shape)} on {start.device}"
        raise ValueError(f"start must be int64 of shape ({clouds},) on {points.device}, not {given}")
    if start.device.type == "cpu" and not torch.compiler.is_compiling():
        sizes = points.shape[1] if offsets is None else offsets.diff()
        if ((start < 0) | (start >= sizes)).any():
            raise ValueError("start must hold an index of every cloud, 0 or more and less than its number of points")
    return start.contiguous()
