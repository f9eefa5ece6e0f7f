from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch

from omnitrunk.kernels import mlp, native
from omnitrunk.kernels.linear import ROWS, onednn_missing, padded_count
from omnitrunk.kernels.mlp import cost, onednn

from .compare import assert_agree, poisoned

needs_native = pytest.mark.skipif(not native.available(), reason=str(native.missing_reason()))
needs_onednn = pytest.mark.skipif(onednn_missing() is not None, reason=str(onednn_missing()))


def by_hand(x, w1, b1, w2, b2):
    hidden = torch.einsum("...d,fd->...f", x, w1) + b1
    active = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return torch.einsum("...f,of->...o", active, w2) + b2


def random_tensors(shape, hidden, outputs, dtype=torch.float32):
    width = shape[-1]
    shapes = (shape, (hidden, width), (hidden,), (outputs, hidden), (outputs,))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 5), (3, 11, 6), (64, 4), (2, 65, 3)])
@pytest.mark.parametrize(("hidden", "outputs"), [(7, 5), (1, 1), (24, 6)])
def test_onednn_matches_the_formula(shape, hidden, outputs, seed, monkeypatch):
    torch.manual_seed(seed)
    tensors = random_tensors(shape, hidden, outputs)
    poisoned(monkeypatch)
    assert_agree(lambda *t: mlp(*t, backend="onednn"), by_hand, *tensors, tolerance=3e-5)


@needs_onednn
@pytest.mark.parametrize("rows", [128, 131, 300, 1001])
def test_onednn_goes_backward_in_parts(rows, seed, monkeypatch):
    torch.manual_seed(seed)
    monkeypatch.setattr(onednn, "BLOCK_VALUES", 1)
    assert len(onednn._parts(padded_count(rows), 24, 5)) == -(-padded_count(rows) // ROWS)
    poisoned(monkeypatch)
    assert_agree(lambda *t: mlp(*t, backend="onednn"), by_hand, *random_tensors((rows, 6), 24, 5), tolerance=3e-5)


@needs_onednn
def test_onednn_without_the_compiled_module(seed, monkeypatch):
    torch.manual_seed(seed)
    monkeypatch.setattr(native, "available", lambda: False)
    assert_agree(lambda *t: mlp(*t, backend="onednn"), by_hand, *random_tensors((70, 6), 24, 5), tolerance=3e-5)


@needs_onednn
def test_onednn_without_gradients_and_twice_backward(seed):
    torch.manual_seed(seed)
    tensors = random_tensors((9, 6), 24, 5)
    with torch.no_grad():
        alone = mlp(*tensors, backend="onednn")
    leaf = tensors[3].requires_grad_()
    y = mlp(*tensors, backend="onednn")
    assert torch.equal(y, alone)
    first, second = (torch.autograd.grad(y.sum(), leaf, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@needs_onednn
def test_onednn_takes_strided_inputs(seed):
    torch.manual_seed(seed)
    x, *rest = random_tensors((5, 4, 12), 9, 12)
    assert_agree(
        lambda x, *t: mlp(x.transpose(0, 1)[::2], *t, backend="onednn"),
        lambda x, *t: by_hand(x.transpose(0, 1)[::2], *t),
        x,
        *rest,
    )


def gelu_of(x):
    """GELU and its derivative by the native kernel's backward pass."""
    derivative = torch.ones_like(x)
    value, _ = native.gelu_backward_(torch.atleast_2d(derivative), torch.atleast_2d(x))
    return value.view(x.shape), derivative


@needs_native
def test_native_gelu_is_exact_to_float32_rounding():
    x = torch.cat([torch.linspace(-14, 14, 400_003), torch.logspace(-30, 1, 10_001), -torch.logspace(-30, 1, 10_001)])
    value, derivative = gelu_of(x)
    wide = x.double().requires_grad_()
    truth = wide * torch.special.erfc(-wide / 2**0.5) / 2
    truth.sum().backward()
    # One unit in the last place of the result, or the tail's own: small in relative terms too, down to underflow.
    assert ((value - truth).abs() <= 3e-7 * x.abs().double().clamp(max=1) * truth.abs().clamp(min=1)).all()
    normal = truth.abs() > 1e-37
    assert ((value - truth).abs()[normal] <= 2e-5 * truth.abs()[normal]).all()
    assert (derivative - wide.grad).abs().max() <= 3e-7


@needs_native
def test_native_gelu_at_the_ends_of_the_range():
    infinity = float("inf")
    value, derivative = gelu_of(torch.tensor([0.0, -0.0, 3e38, infinity, -3e38, -infinity, float("nan")]))
    assert value[:4].tolist() == [0, 0, torch.tensor(3e38).item(), infinity] and value[6].isnan()
    assert value[4:6].abs().max() < 1e-36 and derivative[:4].tolist() == [0.5, 0.5, 1, 1]


@needs_native
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (63, 16), (64, 17), (65, 33), (130, 260), (0, 4), (3, 0)])
def test_native_gelu_of_matrices(shape, seed):
    """Whatever the size, with nothing written outside."""
    torch.manual_seed(seed)
    x, grad = torch.randn(shape), torch.randn(shape)
    buffers = [torch.full((x.numel() + 34,), torch.nan) for _ in range(3)]
    hidden, value, result = (buffer[17:-17].view(shape) for buffer in buffers)
    hidden.copy_(x)
    expected, slope = gelu_of(x)
    assert torch.equal(native.gelu(hidden, value), expected) and torch.equal(hidden, x)
    assert torch.equal(native.gelu(value.copy_(x), value), expected)
    result.copy_(grad)
    active, sums = native.gelu_backward_(result, hidden)
    assert torch.equal(active, expected) and torch.equal(result, grad * slope) and torch.equal(hidden, x)
    torch.testing.assert_close(sums.double(), (grad.double() * slope).sum(0), rtol=1e-5, atol=1e-5)
    assert all(buffer[:17].isnan().all() and buffer[-17:].isnan().all() for buffer in buffers)


def digest(seed=3):
    """The native kernels on input of several pieces, as bytes."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = (4 * torch.randn(300, 260, generator=generator) for _ in range(2))
    results = [native.gelu(x, torch.empty_like(x)), *native.gelu_backward_(grad, x), grad]
    return hashlib.sha256(b"".join(result.numpy().tobytes() for result in results)).hexdigest()


@needs_native
@pytest.mark.parametrize("isa", ["scalar", "avx2"])
def test_native_gelu_has_the_same_bits_everywhere(isa):
    program = "from tests.kernels.test_mlp import digest, native; print(native.module().isa(), digest())"
    environment = {**os.environ, "OMNITRUNK_ISA": isa, "OMP_NUM_THREADS": "2"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    if "is not available" in result.stderr:
        pytest.skip(f"needs a processor with {isa}")
    assert result.stdout.split() == [isa, digest()], result.stderr


def test_the_definition_in_float64_and_on_nothing(seed):
    torch.manual_seed(seed)
    tensors = random_tensors((3, 4), 5, 4, torch.float64)
    torch.testing.assert_close(mlp(*tensors, backend="reference"), by_hand(*tensors))
    torch.testing.assert_close(mlp(*tensors), by_hand(*tensors))
    assert mlp(torch.ones(0, 4), *(tensor.float() for tensor in tensors[1:])).shape == (0, 4)


def test_gradcheck_of_the_definition(seed):
    torch.manual_seed(seed)
    tensors = [tensor.requires_grad_() for tensor in random_tensors((2, 3), 4, 2, torch.float64)]
    assert torch.autograd.gradcheck(lambda *t: mlp(*t, backend="reference"), tensors)


def test_refuses_shapes_that_do_not_fit():
    x, w1, b1, w2, b2 = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4), torch.ones(3, 4), torch.ones(3)
    with pytest.raises(ValueError, match="w1"):
        mlp(x, w1[:, :2], b1, w2, b2)
    with pytest.raises(ValueError, match="b1"):
        mlp(x, w1, b1[:3], w2, b2)
    with pytest.raises(ValueError, match="w2"):
        mlp(x, w1, b1, w2[:, :2], b2)


def test_cost_is_that_of_two_products():
    assert cost(10, 3, 12).flop == 2 * (2 * 10 * 3 * 12) and cost(10, 3, 12).exps == 120
    assert cost(10, 3, 12, backward=True).flop == 2 * cost(10, 3, 12).flop
