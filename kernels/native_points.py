"""The point-cloud kernels of the compiled module omnitrunk.kernels._C, as functions on torch CPU tensors.

Clouds are points float32 (B, N, 3), or ragged: points (total, 3) with offsets int64 (B + 1,), cloud b being the rows
offsets[b] to offsets[b + 1]. Kinds may be mixed: a call takes equal clouds on one side and ragged ones on the other.
These wrappers check what C++ cannot, as assertions, because their callers are the operations of this package. Values of
offsets and start indices C++ checks, and raises ValueError: the operations have done so with better words, unless they
were compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from omnitrunk.kernels import native
from omnitrunk.kernels.library import operator


def missing_reason() -> str | None:
    """Why these kernels are not there and how to get them, in one line; None when they are there."""
    if native.missing_reason() is not None:
        return native.missing_reason()
    return None if hasattr(native.module(), "chamfer") else "needs GCC 12 or newer, or Clang, when csrc is built"


def _fake_sample(points: Tensor, count: int, offsets: Tensor | None, start: Tensor | None, pointnet2: bool) -> Tensor:
    return points.new_empty(_clouds(points, offsets), count, dtype=torch.int64)


@operator(fake=_fake_sample)
def native_farthest_point_sample(
    points: Tensor, count: int, offsets: Tensor | None, start: Tensor | None, pointnet2: bool
) -> Tensor:
    """Indices int64 (B, count) of points picked one after another, each the farthest from those before it.

    start int64 (B,) holds the first picks, index 0 where left out; `pointnet2` leaves out points near the origin. No
    cloud may be empty.
    """
    clouds = _clouds(points, offsets)
    index = torch.empty(clouds, count, dtype=torch.int64)
    first = 0 if start is None else _address(start, torch.int64, (clouds,))
    native.module().farthest_point_sample(
        _cloud_tuple(points, offsets), first, pointnet2, count, index.data_ptr(), torch.get_num_threads()
    )
    return index


def _fake_neighbors(
    points: Tensor, queries: Tensor, k: int, offsets: Tensor | None, query_offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = (*queries.shape[:-1], k)
    return points.new_empty(shape, dtype=torch.int64), points.new_empty(shape)


@operator(fake=_fake_neighbors)
def native_nearest_neighbors(
    points: Tensor, queries: Tensor, k: int, offsets: Tensor | None, query_offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Index int64 and squared distance float32 (..., k) of the nearest points of queries (..., 3), 1 <= k.

    Ordered by distance, then by index within the cloud. Every cloud has at least k points.
    """
    shape = (*queries.shape[:-1], k)
    index, distance = torch.empty(*shape, dtype=torch.int64), torch.empty(*shape, dtype=torch.float32)
    _search(points, queries, k, offsets, query_offsets, index.data_ptr(), distance.data_ptr(), 0)
    return index, distance


@operator(fake=lambda points, queries, k, offsets, query_offsets: points.new_empty(*queries.shape[:-1], k, 3))
def native_group_points(
    points: Tensor, queries: Tensor, k: int, offsets: Tensor | None, query_offsets: Tensor | None
) -> Tensor:
    """The k nearest points of every query minus the query, (..., k, 3), in the order of `native_nearest_neighbors`."""
    groups = torch.empty(*queries.shape[:-1], k, 3, dtype=torch.float32)
    _search(points, queries, k, offsets, query_offsets, 0, 0, groups.data_ptr())
    return groups


def _search(
    points: Tensor,
    queries: Tensor,
    k: int,
    offsets: Tensor | None,
    query_offsets: Tensor | None,
    *results: int,
) -> None:
    assert k >= 1 and _clouds(points, offsets) == _clouds(queries, query_offsets), (k, points.shape, queries.shape)
    clouds, of_queries = _cloud_tuple(points, offsets), _cloud_tuple(queries, query_offsets)
    native.module().nearest_neighbors(clouds, of_queries, k, *results, torch.get_num_threads())


def _fake_chamfer(
    a: Tensor, b: Tensor, offsets_a: Tensor | None, offsets_b: Tensor | None, root: bool, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_a, grad_b = (x.new_empty(x.shape if gradients else (0,)) for x in (a, b))
    return a.new_empty(_clouds(a, offsets_a)), grad_a, grad_b


@operator(fake=_fake_chamfer)
def native_chamfer(
    a: Tensor, b: Tensor, offsets_a: Tensor | None, offsets_b: Tensor | None, root: bool, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Chamfer distance (B,) of pairs of sets, and its gradients for a and b; empty unless `gradients`.

    The gradients are those of every set's own distance. `root` takes half of the distances instead of the squared
    distances. No set may be empty.
    """
    assert _clouds(a, offsets_a) == _clouds(b, offsets_b), (a.shape, b.shape)
    sets = _cloud_tuple(a, offsets_a), _cloud_tuple(b, offsets_b)
    loss = torch.empty(_clouds(a, offsets_a), dtype=torch.float32)
    grad_a, grad_b = (torch.empty(*(x.shape if gradients else (0,)), dtype=torch.float32) for x in (a, b))
    out = (grad_a.data_ptr(), grad_b.data_ptr()) if gradients else (0, 0)
    native.module().chamfer(*sets, root, loss.data_ptr(), out, torch.get_num_threads())
    return loss, grad_a, grad_b


def _clouds(points: Tensor, offsets: Tensor | None) -> int:
    return points.shape[0] if offsets is None else len(offsets) - 1


def _cloud_tuple(points: Tensor, offsets: Tensor | None) -> tuple[int, int, int, int]:
    clouds = _clouds(points, offsets)
    address = _address(points, torch.float32, (*points.shape[: 2 if offsets is None else 1], 3))
    total = points.numel() // 3
    assert total < 2**31, points.shape
    return address, 0 if offsets is None else _address(offsets, torch.int64, (clouds + 1,)), clouds, total


def _address(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    assert tensor.device.type == "cpu" and tensor.is_contiguous(), (tensor.device, tensor.stride())
    assert tensor.dtype == dtype and tensor.shape == shape, (tensor.dtype, tensor.shape, dtype, shape)
    return tensor.data_ptr()
