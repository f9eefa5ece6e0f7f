"""The Triton launchers as torch operators: sound for torch.compile, and one graph with their autograd wiring."""

from __future__ import annotations

import importlib

import pytest
import torch

from omnitrunk.kernels.layer_norm import layer_norm
from tests.triton.compare import random


def test_launchers_are_sound_operators(seed, device):
    importlib.import_module("omnitrunk.kernels.layer_norm.triton_kernels")
    x, weight = random(seed, 6, 24, device=device), random(seed + 1, 24, device=device)
    y, stream, mean, rstd = torch.ops.omnitrunk.layer_norm_forward(x, weight, weight, 1e-6, x, weight, None)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.omnitrunk.layer_norm_forward.default, (x, weight, weight, 1e-6, x, None, None), test_utils=tests
    )
    torch.library.opcheck(
        torch.ops.omnitrunk.layer_norm_backward.default,
        (y, None, x, stream, weight, mean, rstd, weight, None),
        test_utils=tests,
    )


@pytest.mark.parametrize("residual", [False, True])
def test_is_one_graph(seed, device, residual):
    def run(x, weight, bias, stream):
        if not residual:
            return layer_norm(x, weight, bias, backend="triton")
        return sum(layer_norm(x, weight, bias, residual=stream, backend="triton"))

    results = []
    for call in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        inputs = [random(seed + i, *shape, device=device) for i, shape in enumerate([(6, 24), (24,), (24,), (6, 24)])]
        call(*(tensor.requires_grad_() for tensor in inputs)).square().sum().backward()
        results.append([tensor.grad for tensor in inputs[: 4 if residual else 3]])
    torch.testing.assert_close(*results)
    torch.compiler.reset()
