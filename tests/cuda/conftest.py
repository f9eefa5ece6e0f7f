from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels import cuda, gpu
from tests.cuda import device, twin

needs_compiler = pytest.mark.skipif(twin.COMPILER is None, reason="needs g++ on PATH")
needs_gpu = pytest.mark.skipif(not cuda.available(), reason=f"the CUDA kernels cannot run: {cuda.missing_reason()}")


@pytest.fixture(
    params=[pytest.param(twin, marks=needs_compiler), pytest.param(device, marks=[pytest.mark.gpu, needs_gpu])],
    ids=["host", "gpu"],
)
def kernels(request, monkeypatch):
    """The CUDA kernels, on the host and on a GPU: the same tests for both. What they write is guarded."""
    if request.param is twin:
        yield twin
        return
    results = twin.Results("cuda")
    monkeypatch.setattr(gpu, "new", lambda shape, dtype, _device: results.new(*shape, dtype=dtype))
    yield device
    torch.cuda.synchronize()
    results.check()
