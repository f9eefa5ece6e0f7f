from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels.layer_norm import layer_norm, reference
from tests.triton.compare import assert_matches, random, strided


def tensors(seed, dtype, device, rows, width, options, scale=1.0):
    x, residual = (random(seed + i, *rows, width, dtype=dtype, device=device, scale=scale) for i in range(2))
    weight, bias, layer_scale = (random(seed + 2 + i, width, dtype=dtype, device=device) for i in range(3))
    return [x, 1 + weight, bias, residual if options else None, layer_scale if "scale" in options else None]


def calls(drop_scale):
    def ours(x, weight, bias, residual, layer_scale):
        return layer_norm(
            x, weight, bias, residual=residual, layer_scale=layer_scale, drop_scale=drop_scale, backend="triton"
        )

    def definition(x, weight, bias, residual, layer_scale):
        return reference(x, weight, bias, 1e-6, residual, layer_scale, drop_scale)

    return ours, definition


@pytest.mark.parametrize("options", [(), ("residual",), ("residual", "scale"), ("residual", "drop", "scale")], ids=str)
@pytest.mark.parametrize("width", [5, 48, 129])
def test_matches_the_definition(seed, dtype, device, width, options):
    drop_scale = torch.tensor([0.0, 1.25, 1.0], device=device) if "drop" in options else None
    inputs = tensors(seed, dtype, device, (3, 7), width, options)
    assert_matches(*calls(drop_scale), inputs)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_small_and_large_values(seed, device, scale):
    assert_matches(*calls(None), tensors(seed, torch.float32, device, (40,), 96, ("residual",), scale), tolerance=2e-5)


def test_strided_inputs(seed, device):
    inputs = [None if t is None else strided(t) for t in tensors(seed, torch.float32, device, (5, 3), 32, ("scale",))]
    assert_matches(*calls(None), inputs)


def test_no_rows(device):
    x, vector = torch.zeros(0, 16, device=device, requires_grad=True), torch.ones(16, device=device, requires_grad=True)
    y = layer_norm(x, vector, vector, backend="triton")
    y.sum().backward()
    assert y.shape == (0, 16) and (vector.grad == 0).all()


def test_only_the_stream_is_used(seed, device):
    inputs = tensors(seed, torch.float32, device, (6,), 24, ("scale",))
    ours, definition = calls(None)
    assert_matches(lambda *t: ours(*t)[1], lambda *t: definition(*t)[1], inputs)
