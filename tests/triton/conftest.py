"""The Triton lane: in Triton's interpreter on CPU tensors, and on a GPU where there is one, with the same tests."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from omnitrunk.kernels import gpu

GUARD = 64
"""Elements before and after every result that a kernel must leave alone."""


def pytest_collection_modifyitems(items):
    if gpu.missing() is None:
        return
    needs = pytest.mark.skip(reason="needs a GPU, or TRITON_INTERPRET=1 in a process of its own")
    for item in items:
        if item.path.parent.name == "triton":
            item.add_marker(needs)


@pytest.fixture
def device():
    return torch.device("cpu" if gpu.interpreted() else "cuda")


def _dtypes():
    # In the interpreter a product of bfloat16 tiles is silently wrong.
    return [torch.float32, torch.float16] if gpu.interpreted() else [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=_dtypes(), ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    return request.param


@pytest.fixture(autouse=True)
def guarded(monkeypatch):
    """Memory for results comes poisoned and between guard bands; afterwards the bands must be as they were."""
    made = []

    def new(shape, dtype, device):
        size = torch.Size(shape).numel()
        whole = torch.empty(size + 2 * GUARD, dtype=dtype, device=device)
        whole.fill_(_poison(dtype))
        if not isinstance(whole, FakeTensor):
            made.append((whole, size))
        return whole[GUARD : GUARD + size].view(tuple(shape))

    if gpu.interpreted() or torch.cuda.is_available():
        monkeypatch.setattr(gpu, "new", new)
    yield
    for whole, size in made:
        poison = torch.full((), _poison(whole.dtype), dtype=whole.dtype, device=whole.device)
        for band in (whole[:GUARD], whole[GUARD + size :]):
            untouched = band.isnan() if whole.is_floating_point() else band == poison
            assert untouched.all(), f"a kernel wrote outside of a result of {size} elements of {whole.dtype}"


def _poison(dtype):
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max
