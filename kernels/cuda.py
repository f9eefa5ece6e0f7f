"""The compiled module omnitrunk.kernels._cuda, as functions on torch CUDA tensors.

The module may be absent: `missing_reason()` then says what to do, and the operations use their definitions in PyTorch.
Its kernels start on the current stream and nothing waits for them: no size is read back from the device, so that all
calls can be captured in a CUDA graph. These wrappers check what C++ cannot: device, dtype, shape and contiguity, as
assertions, because their callers are the operations of this package.

Clouds are points float32 (B, N, 3), or ragged: points (total, 3) with `offsets` int64 (B + 1), cloud b being the rows
offsets[b] to offsets[b + 1]. All kernels together take fewer than 2^31 points.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
from types import ModuleType

import torch
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.library import operator

MOST_NEIGHBORS = 128
_IN_REGISTERS = 16384
_SMALL_SET = 64


@functools.cache
def _load() -> ModuleType | str:
    """The compiled module, or the reason why there is none."""
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU"
    if torch.cuda.get_device_capability() < gpu.OLDEST:
        return "needs a GPU of compute capability 8.0 or newer"
    try:
        return importlib.import_module("omnitrunk.kernels._cuda")
    except ModuleNotFoundError:
        return f"omnitrunk.kernels._cuda is not built; {_how_to_build()}"
    except ImportError as error:
        return f"omnitrunk.kernels._cuda does not load ({error})"


def _how_to_build() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if shutil.which("nvcc") or (home and shutil.which("nvcc", path=os.path.join(home, "bin"))):
        return "install omnitrunk again with OMNITRUNK_CUDA=on in the environment"
    return "install the CUDA toolkit, for its compiler nvcc, and then omnitrunk again"


def available() -> bool:
    """Whether the compiled module is there and has a GPU to run on."""
    return missing_reason() is None


def missing_reason() -> str | None:
    """Why the compiled module cannot be used and how to get it, in one line; None when it is there."""
    module = _load()
    return module if isinstance(module, str) else None


def module() -> ModuleType:
    """The compiled module itself. Call it only where `available()`."""
    module = _load()
    assert isinstance(module, ModuleType), module
    return module


def _index_shape(points: Tensor, count: int, offsets: Tensor | None, start: Tensor | None, pointnet2: bool) -> Tensor:
    return gpu.new((_clouds(points, offsets), count), torch.int64, points.device)


@operator(fake=_index_shape)
def cuda_farthest_point_sample(
    points: Tensor, count: int, offsets: Tensor | None, start: Tensor | None, pointnet2: bool
) -> Tensor:
    """Indices int64 (B, count) of points picked one after another, each the farthest from those before it.

    start int64 (B,) holds the first picks, index 0 where left out; `pointnet2` excludes points near the origin.
    """
    index = _index_shape(points, count, offsets, start, pointnet2)
    work = None
    if offsets is not None or points.shape[1] > _IN_REGISTERS:
        work = gpu.new((points.numel() // 3,), torch.float32, points.device)
    module().farthest_point_sample(
        _cloud_tuple(points, offsets),
        _address(start, torch.int64, points.device),
        pointnet2,
        count,
        index.data_ptr(),
        _address(work),
        _where(points),
    )
    return index


def _neighbor_shapes(
    points: Tensor, queries: Tensor, k: int, offsets: Tensor | None, query_offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = (*queries.shape[:-1], k)
    return gpu.new(shape, torch.int64, points.device), gpu.new(shape, torch.float32, points.device)


@operator(fake=_neighbor_shapes)
def cuda_nearest_neighbors(
    points: Tensor, queries: Tensor, k: int, offsets: Tensor | None, query_offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Index int64 and squared distance float32 (..., k) of the nearest points, k at most 128.

    Ordered by distance, then by index within the cloud. Queries (..., 3) are clouds like the points, and as many.
    """
    index, distance = _neighbor_shapes(points, queries, k, offsets, query_offsets)
    _search(points, queries, k, offsets, query_offsets, index=index, distance=distance)
    return index, distance


def _group_shape(
    points: Tensor, queries: Tensor, k: int, offsets: Tensor | None, query_offsets: Tensor | None
) -> Tensor:
    return gpu.new((*queries.shape[:-1], k, 3), torch.float32, points.device)


@operator(fake=_group_shape)
def cuda_group_points(
    points: Tensor, queries: Tensor, k: int, offsets: Tensor | None, query_offsets: Tensor | None
) -> Tensor:
    """The k nearest points of every query minus the query, (..., k, 3), in the order of `cuda_nearest_neighbors`."""
    groups = _group_shape(points, queries, k, offsets, query_offsets)
    _search(points, queries, k, offsets, query_offsets, groups=groups)
    return groups


def _search(
    points: Tensor,
    queries: Tensor,
    k: int,
    offsets: Tensor | None,
    query_offsets: Tensor | None,
    *,
    index: Tensor | None = None,
    distance: Tensor | None = None,
    groups: Tensor | None = None,
) -> None:
    assert 0 <= k <= MOST_NEIGHBORS and _clouds(points, offsets) == _clouds(queries, query_offsets)
    module().nearest_neighbors(
        _cloud_tuple(points, offsets),
        _cloud_tuple(queries, query_offsets),
        k,
        *(_address(result) for result in (index, distance, groups)),
        _where(points),
    )


def _chamfer_shapes(
    a: Tensor, b: Tensor, offsets_a: Tensor | None, offsets_b: Tensor | None, root: bool, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    loss = gpu.new((_clouds(a, offsets_a),), torch.float32, a.device)
    grad_a, grad_b = (gpu.new(x.shape if gradients else (0,), torch.float32, x.device) for x in (a, b))
    return loss, grad_a, grad_b


@operator(fake=_chamfer_shapes)
def cuda_chamfer(
    a: Tensor, b: Tensor, offsets_a: Tensor | None, offsets_b: Tensor | None, root: bool, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Chamfer distance (B,) of pairs of sets, and its gradients for a and b; empty unless `gradients`.

    The gradients are those of every set's own distance. `root` takes half the distances instead of the squared
    distances; csrc/cuda/chamfer_terms.cuh has the formula.
    """
    assert _clouds(a, offsets_a) == _clouds(b, offsets_b), (a.shape, b.shape)
    loss, grad_a, grad_b = _chamfer_shapes(a, b, offsets_a, offsets_b, root, gradients)
    work = _chamfer_work(a, b, offsets_a is None and offsets_b is None)
    module().chamfer(
        _cloud_tuple(a, offsets_a),
        _cloud_tuple(b, offsets_b),
        root,
        loss.data_ptr(),
        [grad.data_ptr() if gradients else 0 for grad in (grad_a, grad_b)],
        [_address(memory) for memory in work],
        _where(a),
    )
    return loss, grad_a, grad_b


def _chamfer_work(a: Tensor, b: Tensor, equal_sizes: bool) -> list[Tensor | None]:
    # Small sets are served by a kernel that keeps distances and matches to itself.
    if equal_sizes and max(a.shape[1], b.shape[1]) <= _SMALL_SET:
        return [None] * 4
    return [gpu.new((x.numel() // 3,), dtype, x.device) for dtype in (torch.float32, torch.int32) for x in (a, b)]


def _clouds(points: Tensor, offsets: Tensor | None) -> int:
    return points.shape[0] if offsets is None else len(offsets) - 1


def _cloud_tuple(points: Tensor, offsets: Tensor | None) -> tuple[int, int, int, int]:
    total = points.numel() // 3
    assert points.shape[-1] == 3 and points.dim() == (3 if offsets is None else 2) and total < 2**31, points.shape
    address = _address(points, torch.float32, points.device)
    return address, _address(offsets, torch.int64, points.device), _clouds(points, offsets), total


def _address(tensor: Tensor | None, dtype: torch.dtype | None = None, device: torch.device | None = None) -> int:
    if tensor is None:
        return 0
    assert tensor.is_cuda and tensor.is_contiguous(), (tensor.device, tensor.stride())
    assert tensor.dtype == (dtype or tensor.dtype) and tensor.device == (device or tensor.device), tensor
    return tensor.data_ptr()


def _where(tensor: Tensor) -> tuple[int, int]:
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
