"""kernels/cuda.py where nothing can run: the reason it gives, and the shapes that torch.compile learns."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from omnitrunk.kernels import cuda

OPERATORS = torch.ops.omnitrunk


@pytest.fixture
def fresh():
    cuda._load.cache_clear()
    yield
    cuda._load.cache_clear()


def import_that_raises(error):
    def import_module(name):
        raise error

    return import_module


def test_needs_a_gpu(fresh, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.missing_reason() == "needs an NVIDIA GPU" and not cuda.available()


@pytest.mark.parametrize(
    "compiler, error, reason",
    [
        (None, ModuleNotFoundError(), "install the CUDA toolkit, for its compiler nvcc"),
        ("/usr/bin/nvcc", ModuleNotFoundError(), "with OMNITRUNK_CUDA=on"),
        (None, ImportError("no NVIDIA driver"), r"does not load \(no NVIDIA driver\)"),
    ],
)
def test_says_what_is_missing_in_one_line(fresh, monkeypatch, compiler, error, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(cuda.shutil, "which", lambda *_args, **_kwargs: compiler)
    monkeypatch.setattr(cuda.importlib, "import_module", import_that_raises(error))
    assert pytest.raises(AssertionError, cuda.module).match(reason)
    assert "\n" not in cuda.missing_reason()


def test_shapes_under_torch_compile():
    with FakeTensorMode():
        points, queries = torch.empty(3, 50, 3), torch.empty(3, 7, 3)
        ragged, offsets = torch.empty(90, 3), torch.empty(5, dtype=torch.int64)
        assert OPERATORS.cuda_farthest_point_sample(points, 9, None, None, False).shape == (3, 9)
        assert OPERATORS.cuda_farthest_point_sample(ragged, 9, offsets, None, True).shape == (4, 9)
        index, distance = OPERATORS.cuda_nearest_neighbors(points, queries, 5, None, None)
        assert index.shape == distance.shape == (3, 7, 5) and index.dtype == torch.int64
        assert OPERATORS.cuda_group_points(ragged, ragged, 5, offsets, offsets).shape == (90, 5, 3)
        loss, grad_a, grad_b = OPERATORS.cuda_chamfer(points, queries, None, None, False, True)
        assert (loss.shape, grad_a.shape, grad_b.shape) == ((3,), points.shape, queries.shape)
        assert OPERATORS.cuda_chamfer(points, queries, None, None, False, False)[1].shape == (0,)
