"""knn and group_points: the points of a cloud that are nearest to a query, and groups of them around a center.

    index[q], distance[q] = the k points of least (squared distance, index), in that order
    group[q]              = points[index[q]] - center[q]

with the squared distance of two points (dx dx + dy dy) + dz dz. Every operation is rounded, none is contracted, so that
all backends agree bit for bit in float32. A distance that is not a number comes after infinity.
Clouds (B, N, 3) of one size each, or ragged: (total, 3), cloud b being rows cu_seqlens[b] to cu_seqlens[b + 1]. Queries
alike, independently of the points: an index counts within the cloud, and (B, G, 3) centers serve ragged clouds.
No gradient reaches points or queries.
Sources: grouping around centers, Qi et al. 2017 (PointNet++), section 3.2; Pang et al. 2022 (Point-MAE), section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from omnitrunk.kernels import cuda, native_points
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation


def cost(clouds: int, points: int, queries: int, k: int, *, bytes_per_number: int = 4) -> Cost:
    """Least work for `queries` queries on each of `clouds` clouds of `points` points.

    Every point is read once; a neighbor is written as index and distance or as three coordinates, 12 bytes in float32
    either way. 8 FLOP a distance; selection is not counted.
    """
    numbers = 3 * points + 3 * queries + 3 * queries * k
    return Cost(bytes=clouds * numbers * bytes_per_number, flop=8 * clouds * points * queries)


def squared_distance(p: Tensor, q: Tensor) -> Tensor:
    """Squared distances of points (..., 3), rounded as in the module's text."""
    x, y, z = (p - q).unbind(-1)
    return (x * x + y * y) + z * z


def clouds_of(values: Tensor, offsets: Tensor | None) -> Sequence[Tensor]:
    """Views of what belongs to every cloud: values (B, N, ...), or (total, ...) with offsets, which are read."""
    return values.unbind() if offsets is None else values.split(offsets.diff().tolist())


def _nearest(points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Points (..., N, 3), queries (..., Q, 3) -> index and distance (..., Q, k)."""
    _require(k, points.shape[-2])
    distance, index = squared_distance(points.unsqueeze(-3), queries.unsqueeze(-2)).sort(stable=True)
    return index[..., :k], distance[..., :k]


def reference(
    points: Tensor, queries: Tensor, k: int, offsets: Tensor | None, query_offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The definition by sorting; see the module's text."""
    if offsets is None and query_offsets is None:
        return _nearest(points, queries, k)
    shape = (*queries.shape[:-1], k)
    results = torch.empty(shape, dtype=torch.int64, device=points.device), points.new_empty(shape)
    rows = (clouds_of(values, query_offsets) for values in (queries, *results))
    for cloud, at, index, distance in zip(clouds_of(points, offsets), *rows, strict=True):
        found = _nearest(cloud, at, k)
        index.copy_(found[0])
        distance.copy_(found[1])
    return results


def group_reference(
    points: Tensor, centers: Tensor, k: int, offsets: Tensor | None, center_offsets: Tensor | None
) -> Tensor:
    """The definition of `group_points`."""
    index, _ = reference(points, centers, k, offsets, center_offsets)
    begins = torch.arange(len(points), device=points.device) * points.shape[1] if offsets is None else offsets[:-1]
    if center_offsets is None:
        begins = begins[:, None, None]
    else:
        begins = begins.repeat_interleave(center_offsets.diff())[:, None]
    return points.reshape(-1, 3)[begins + index] - centers.unsqueeze(-2)


OPERATION = Operation("knn", reference)
GROUP = Operation("group_points", group_reference)


def refuses(points: Tensor, *others: object) -> str | None:
    """What native kernels object to in points: they compute in float32, and count in 32 bits."""
    if points.dtype != torch.float32:
        return f"computes in float32, not {points.dtype}"
    most = max(tensor.numel() for tensor in (points, *others) if isinstance(tensor, Tensor))
    return None if most < 3 * 2**31 else "takes fewer than 2^31 points"


def _refuses_on_cuda(points: Tensor, queries: Tensor, k: int, *_offsets: object) -> str | None:
    if k > cuda.MOST_NEIGHBORS:
        return f"finds {cuda.MOST_NEIGHBORS} neighbors at most, not {k}"
    return refuses(points, queries)


def _serving(launch: Callable[..., Any]) -> Callable[..., Any]:
    """A backend out of a launcher that takes contiguous points and queries."""

    def run(points: Tensor, queries: Tensor, k: int, offsets: Tensor | None, query_offsets: Tensor | None) -> Any:
        return launch(points.contiguous(), queries.contiguous(), k, offsets, query_offsets)

    return run


OPERATION.backend(
    "cuda",
    devices=("cuda",),
    why="a warp keeps the nearest of its query sorted in registers",
    missing=cuda.missing_reason,
    refuses=_refuses_on_cuda,
)(_serving(cuda.cuda_nearest_neighbors))
GROUP.backend(
    "cuda",
    devices=("cuda",),
    why="writes groups as they are found",
    missing=cuda.missing_reason,
    refuses=_refuses_on_cuda,
)(_serving(cuda.cuda_group_points))
OPERATION.backend(
    "cpu",
    devices=("cpu",),
    why="finds a bound for the distances first and sorts the few within",
    missing=native_points.missing_reason,
    refuses=refuses,
)(_serving(native_points.native_nearest_neighbors))
GROUP.backend(
    "cpu",
    devices=("cpu",),
    why="writes groups as they are found",
    missing=native_points.missing_reason,
    refuses=refuses,
)(_serving(native_points.native_group_points))


def knn(
    points: Tensor,
    queries: Tensor,
    k: int,
    *,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Find the k nearest points of every query in its own cloud.

    points (B, N, 3) or, with cu_seqlens (B + 1,), (total, 3); queries (B, Q, 3) or, with cu_seqlens_q, (total_q, 3);
    float32 or float64 -> index int64 within the cloud and squared distance of the dtype of the points, (B, Q, k) or
    (total_q, k), by ascending distance, equal ones by index. Raises ValueError where shapes do not fit or a cloud has
    fewer than k points. What cu_seqlens hold is not looked at on a GPU: there, a cloud with too few points gives index
    -1 and an infinite distance.
    """
    return OPERATION.run(backend, *_call(points, queries, k, cu_seqlens, cu_seqlens_q))


def group_points(
    points: Tensor,
    centers: Tensor,
    k: int,
    *,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Gather the k nearest points of every center, relative to it, the nearest first.

    points and centers as the points and queries of `knn` -> (B, G, k, 3) or (total_q, k, 3). Errors are those of `knn`;
    where it gives index -1, a group has NaN.
    """
    return GROUP.run(backend, *_call(points, centers, k, cu_seqlens, cu_seqlens_q))


def _call(
    points: Tensor, queries: Tensor, k: int, cu_seqlens: Tensor | None, cu_seqlens_q: Tensor | None
) -> tuple[Tensor, Tensor, int, Tensor | None, Tensor | None]:
    check_dtypes(points, queries)
    offsets = checked_offsets("points", points, cu_seqlens)
    query_offsets = checked_offsets("queries", queries, cu_seqlens_q)
    check_pairs(points, offsets, queries, query_offsets)
    _require(k, fewest(points, offsets))
    return points.detach(), queries.detach(), k, offsets, query_offsets


def _require(k: int, points: int | None) -> None:
    if k < 1:
        raise ValueError(f"k must be 1 or more, not {k}")
    if points is not None and points < k:
        raise ValueError(f"k = {k} neighbors need clouds of at least {k} points, and one has {points}: use a smaller k")


def check_dtypes(*points: Tensor) -> None:
    """Raise ValueError unless all are float32, or all are float64, on one device."""
    dtypes = {(x.dtype, x.device) for x in points}
    if len(dtypes) > 1 or points[0].dtype not in (torch.float32, torch.float64):
        given = " and ".join(f"{x.dtype} on {x.device}" for x in points)
        raise ValueError(
            f"points must be float32 or float64, all alike and on one device, not {given}: use points.to()"
        )


def checked_offsets(name: str, points: Tensor, cu_seqlens: Tensor | None) -> Tensor | None:
    """cu_seqlens as int64, or None; ValueError where they, or the shape of the points, are not as `knn` says.

    Their values are checked on the CPU only, and not while a compiler traces.
    """
    if points.dim() != (3 if cu_seqlens is None else 2) or points.shape[-1] != 3:
        shape = "(B, N, 3), or (total, 3) with cu_seqlens" if cu_seqlens is None else "(total, 3) with cu_seqlens"
        raise ValueError(f"{name} must be {shape}, not {tuple(points.shape)}")
    if cu_seqlens is None:
        return None
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or not len(cu_seqlens):
        given = f"{cu_seqlens.dtype} of {tuple(cu_seqlens.shape)}"
        raise ValueError(f"cu_seqlens of the {name} must be int32 or int64 of shape (B + 1,), not {given}")
    if cu_seqlens.device != points.device:
        raise ValueError(f"cu_seqlens of the {name} must be on {points.device}, not {cu_seqlens.device}")
    offsets = cu_seqlens.long().contiguous()
    if _readable(offsets):
        first, last, least = offsets[0].item(), offsets[-1].item(), min(offsets.diff().tolist(), default=0)
        if first != 0 or last != len(points) or least < 0:
            raise ValueError(
                f"cu_seqlens of the {name} must ascend from 0 to {len(points)}, not from {first} to {last}"
            )
    return offsets


def check_pairs(a: Tensor, offsets_a: Tensor | None, b: Tensor, offsets_b: Tensor | None) -> None:
    """Raise ValueError unless there are as many clouds on both sides."""
    counts = [len(x) if offsets is None else len(offsets) - 1 for x, offsets in ((a, offsets_a), (b, offsets_b))]
    if counts[0] != counts[1]:
        raise ValueError(
            f"every cloud needs its partner, but there are {counts[0]} on one side and {counts[1]} on the other"
        )


def fewest(points: Tensor, offsets: Tensor | None) -> int | None:
    """The points of the smallest cloud; None where there is no cloud, or where that cannot be known without waiting."""
    if offsets is None:
        return points.shape[1] if len(points) else None
    return min(offsets.diff().tolist(), default=None) if _readable(offsets) else None


def _readable(offsets: Tensor) -> bool:
    return offsets.device.type == "cpu" and not torch.compiler.is_compiling()
