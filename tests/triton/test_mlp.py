from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

import triton
import triton.language as tl

from omnitrunk.kernels import gpu, mlp
from omnitrunk.kernels.mlp import reference, triton_kernels
from omnitrunk.kernels.mlp.triton_gelu import gelu, gelu_derivative
from tests.triton.compare import assert_matches, error, random, strided

SMALL = {
    "tier": {"FUSED": True},
    "forward": {"ROWS": 32, "COLUMNS": 32, "DEPTH": 16, "GROUP": 2, "num_warps": 4, "num_stages": 2},
    "backward": {"ROWS": 16, "COLUMNS": 64, "DEPTH": 32, "GROUP": 3, "num_warps": 4, "num_stages": 2},
    "gelu": {"SIZE": 64, "num_warps": 4, "num_stages": 1},
    "gelu_backward": {"ROWS": 4, "COLUMNS": 16, "num_warps": 4, "num_stages": 1},
}


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that a test's matrices have many of them."""
    monkeypatch.setattr(gpu, "settings", lambda _operation, kernel, _size: SMALL[kernel])


def tensors(seed, dtype, device, rows, width, hidden, outputs, scale=1.0):
    shapes = ((*rows, width), (hidden, width), (hidden,), (outputs, hidden), (outputs,))
    scales = (scale, width**-0.5, 1.0, hidden**-0.5, 1.0)
    return [
        random(seed + i, *shape, dtype=dtype, device=device, scale=s)
        for i, (shape, s) in enumerate(zip(shapes, scales, strict=True))
    ]


def tier(fused):
    return lambda *inputs: triton_kernels.mlp(*inputs, fused=fused)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize("rows", [(1,), (31,), (32,), (3, 11)], ids=str)
@pytest.mark.parametrize(("width", "hidden", "outputs"), [(16, 64, 16), (21, 65, 37)])
def test_matches_the_definition(seed, dtype, device, small_tiles, fused, rows, width, hidden, outputs):
    assert_matches(tier(fused), reference, tensors(seed, dtype, device, rows, width, hidden, outputs))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_matches_with_the_shipped_settings(seed, dtype, device, fused):
    assert_matches(tier(fused), reference, tensors(seed, dtype, device, (129,), 72, 264, 64))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_small_and_large_values(seed, device, small_tiles, fused, scale):
    assert_matches(tier(fused), reference, tensors(seed, torch.float32, device, (40,), 48, 96, 48, scale))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_strided_inputs(seed, device, small_tiles, fused):
    assert_matches(
        tier(fused), reference, [strided(t) for t in tensors(seed, torch.float32, device, (5, 3), 24, 32, 24)]
    )


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_no_rows(device, fused):
    inputs = [t.requires_grad_() for t in tensors(1, torch.float32, device, (2, 0), 16, 32, 8)]
    y = triton_kernels.mlp(*inputs, fused=fused)
    y.sum().backward()
    assert y.shape == (2, 0, 8) and all((t.grad == 0).all() for t in inputs)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_without_gradients_and_with_some(seed, device, small_tiles, fused):
    inputs = tensors(seed, torch.float32, device, (33,), 20, 40, 20)
    expected = reference(*(t.double() for t in inputs))
    assert error(triton_kernels.mlp(*inputs, fused=fused), expected) < 1e-5
    inputs[3].requires_grad_()
    triton_kernels.mlp(*inputs, fused=fused).sum().backward()
    assert inputs[3].grad is not None and all(t.grad is None for t in inputs[:3])


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_is_the_same_in_every_run(seed, device, small_tiles, fused):
    inputs, runs = tensors(seed, torch.float32, device, (70,), 20, 40, 20), []
    for _ in range(2):
        leaves = [t.clone().requires_grad_() for t in inputs]
        triton_kernels.mlp(*leaves, fused=fused).square().sum().backward()
        runs.append([t.grad for t in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_autocast_chooses_the_dtype(seed, device):
    dtype = torch.float16
    inputs = tensors(seed, torch.float32, device, (4, 9), 16, 32, 16)
    leaves = [t.clone().requires_grad_() for t in inputs]
    with torch.autocast(device.type, dtype=dtype):
        y = mlp(*leaves, backend="triton")
    y.float().sum().backward()
    assert y.dtype == dtype and error(y, reference(*(t.double() for t in inputs))) < 2e-3
    assert all(leaf.grad.dtype == torch.float32 and leaf.grad.isfinite().all() for leaf in leaves)


def test_refuses_what_it_cannot_serve(device):
    inputs = tensors(1, torch.float32, device, (4,), 16, 32, 16)
    with pytest.raises(ValueError, match="float32 or narrower"):
        mlp(*(t.double() for t in inputs), backend="triton")
    with pytest.raises(ValueError, match="differ in dtype"):
        mlp(inputs[0].half(), *inputs[1:], backend="triton")


def test_a_second_derivative_is_refused(seed, device):
    inputs = [t.requires_grad_() for t in tensors(seed, torch.float32, device, (4,), 16, 32, 16)]
    (grad,) = torch.autograd.grad(triton_kernels.mlp(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@triton.jit
def both_kernel(x, value, derivative, EXACT: tl.constexpr, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    at = tl.load(x + place)
    tl.store(value + place, gelu(at, EXACT))
    tl.store(derivative + place, gelu_derivative(at, EXACT))


def swept(x, exact):
    """gelu and its derivative at x (a multiple of 4096 values) by Triton, and in float64."""
    results = [gpu.new(x.shape, torch.float32, x.device) for _ in range(2)]
    both_kernel[(len(x) // 4096,)](x, *results, EXACT=exact, SIZE=4096)
    wide = x.double().requires_grad_()
    truth = wide * torch.special.erfc(-wide / 2**0.5) / 2
    truth.sum().backward()
    return [t.double() for t in results], [truth.detach(), wide.grad]


def test_short_polynomial_serves_16_bits(device):
    (value, derivative), (truth, slope) = swept(torch.linspace(-12, 12, 50 * 4096, device=device), False)
    assert ((value - truth).abs() <= (2**-13 * truth.abs()).clamp(min=2e-8)).all()
    assert (derivative - slope).abs().max() < 3.2e-5
    # Half a unit in the last place of bfloat16 is 2^-9.
    assert ((derivative - slope).abs() <= (2**-10 * slope.abs()).clamp(min=2**-10 * 2**-5)).all()


def test_long_polynomial_serves_float32(device):
    x = torch.linspace(-12, 12, 50 * 4096, device=device)
    (value, derivative), (truth, slope) = swept(x, True)
    assert ((value - truth).abs() <= 3e-7 * x.double().abs().clamp(min=1)).all()
    assert (derivative - slope).abs().max() < 3e-7


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("exact", [True, False])
def test_far_tails_and_nan(device, exact):
    x = torch.tensor([1e4, -1e4, 3e38, -3e38, 0.0, float("nan")], device=device).repeat(4096)[:4096]
    (value, derivative), _ = swept(x, exact)
    far = torch.tensor([1e4, 0.0, 3e38, 0.0, 0.0], dtype=torch.float64, device=device)
    torch.testing.assert_close(value[:5], far, rtol=1e-6, atol=0)
    torch.testing.assert_close(derivative[:5], far.new_tensor([1, 0, 1, 0, 0.5]), rtol=1e-4, atol=0)
    assert value[5].isnan() and derivative[5].isnan()
