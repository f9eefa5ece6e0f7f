"""The CUDA kernels on the host: csrc/cuda/*.cuh, compiled by g++ with the emulator beside this file, through ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar

import torch

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc" / "cuda"
COMPILER = shutil.which("g++")
GUARD = 64
"""Elements before and after every result that a kernel must leave alone."""

POINTER = ctypes.c_void_p


class Clouds(ctypes.Structure):
    _fields_: ClassVar = [("points", POINTER), ("offsets", POINTER), ("count", ctypes.c_int), ("total", ctypes.c_int)]


class Sampling(ctypes.Structure):
    _fields_: ClassVar = [
        ("clouds", Clouds),
        ("start", POINTER),
        ("pointnet2", ctypes.c_bool),
        ("picks", ctypes.c_int),
        ("index", POINTER),
        ("work", POINTER),
    ]


class Neighbors(ctypes.Structure):
    _fields_: ClassVar = [
        ("clouds", Clouds),
        ("queries", Clouds),
        ("k", ctypes.c_int),
        ("index", POINTER),
        ("distance", POINTER),
        ("groups", POINTER),
    ]


class Chamfer(ctypes.Structure):
    _fields_: ClassVar = [
        ("a", Clouds),
        ("b", Clouds),
        ("root", ctypes.c_bool),
        ("loss", POINTER),
        ("grad_a", POINTER),
        ("grad_b", POINTER),
        ("nearest_a", POINTER),
        ("nearest_b", POINTER),
        ("match_a", POINTER),
        ("match_b", POINTER),
    ]


@functools.cache
def library():
    """The compiled twin; it goes when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="omnitrunk-twin-")
    path = Path(folder.name) / "twin.so"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command = [COMPILER, *flags, f"-I{SOURCES}", f"-I{HERE}", str(HERE / "twin.cpp"), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    twin = ctypes.CDLL(str(path))
    for name in ("farthest_point_sample", "nearest_neighbors", "chamfer"):
        getattr(twin, name).restype = ctypes.c_char_p
    return twin


class Results:
    """Memory for results, poisoned and between guard bands that must stay as they are."""

    def __init__(self, device="cpu"):
        self.device, self.made = device, []

    def new(self, *shape, dtype=torch.float32):
        size = torch.Size(shape).numel()
        poison = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
        whole = torch.full((size + 2 * GUARD,), poison, dtype=dtype, device=self.device)
        self.made.append((whole, size))
        return whole[GUARD : GUARD + size].view(shape)

    def check(self):
        for whole, size in self.made:
            for band in (whole[:GUARD], whole[GUARD + size :]):
                untouched = band.isnan() if whole.is_floating_point() else band == torch.iinfo(whole.dtype).max
                assert untouched.all(), f"a kernel wrote outside of a result of {size} elements"


def _run(name, problem, results):
    message = getattr(library(), name)(ctypes.byref(problem), ctypes.c_uint(int.from_bytes(os.urandom(4), "little")))
    assert message is None, message.decode()
    results.check()


def _clouds(points, offsets):
    assert points.is_contiguous() and points.dtype == torch.float32
    total = points.numel() // 3
    return Clouds(_pointer(points), _pointer(offsets), len(points) if offsets is None else len(offsets) - 1, total)


def _pointer(tensor):
    return None if tensor is None else tensor.data_ptr()


def farthest_point_sample(points, count, offsets=None, start=None, pointnet2=False):
    results, clouds = Results(), _clouds(points, offsets)
    index = results.new(clouds.count, count, dtype=torch.int64)
    work = results.new(clouds.total) if offsets is not None or points.shape[1] > 16384 else None
    problem = Sampling(clouds, _pointer(start), pointnet2, count, _pointer(index), _pointer(work))
    _run("farthest_point_sample", problem, results)
    return index


def nearest_neighbors(points, queries, k, offsets=None, query_offsets=None):
    results, shape = Results(), (*queries.shape[:-1], k)
    index, distance, groups = results.new(*shape, dtype=torch.int64), results.new(*shape), results.new(*shape, 3)
    problem = Neighbors(
        _clouds(points, offsets), _clouds(queries, query_offsets), k, *map(_pointer, (index, distance, groups))
    )
    _run("nearest_neighbors", problem, results)
    return index, distance, groups


def chamfer(a, b, offsets_a=None, offsets_b=None, root=False):
    results, clouds_a, clouds_b = Results(), _clouds(a, offsets_a), _clouds(b, offsets_b)
    loss, grad_a, grad_b = results.new(clouds_a.count), results.new(*a.shape), results.new(*b.shape)
    work = [None] * 4
    if offsets_a is not None or offsets_b is not None or max(a.shape[1], b.shape[1]) > 64:
        work = [results.new(x.numel() // 3, dtype=dtype) for dtype in (torch.float32, torch.int32) for x in (a, b)]
    problem = Chamfer(clouds_a, clouds_b, root, *map(_pointer, (loss, grad_a, grad_b, *work)))
    _run("chamfer", problem, results)
    return loss, grad_a, grad_b
