from __future__ import annotations

import math

import pytest
import torch

from omnitrunk.kernels import gpu, window_attention
from omnitrunk.kernels.window_attention import OPERATION, cut
from tests.triton.compare import TOLERANCE, assert_matches, outputs_and_gradients, random, strided

SMALL = torch.float32 if gpu.interpreted() else torch.bfloat16
"""The dtype of tests in one dtype: on a GPU this operation leaves float32 to torch."""
SHORT = ((2, 5, 6), (2, 3, 3), (1, 1, 1))
LONG = ((2, 9, 5), (2, 7, 5), (0, 3, 0))
"""A map, a window and a shift: padded and shifted, of 18 and of 70 tokens."""
ONE = ((1, 6, 12), (1, 7, 12), (0, 0, 0))
"""One window of 72 tokens."""


@pytest.fixture(params=["default", "sm_90"])
def architecture(request, monkeypatch):
    """Settings of more than one column: tiles of other sizes."""
    monkeypatch.setattr(gpu, "architecture", lambda: request.param)
    gpu.settings.cache_clear()
    yield
    monkeypatch.undo()
    gpu.settings.cache_clear()


@pytest.fixture
def served(dtype):
    if dtype == torch.float32 and not gpu.interpreted():
        pytest.skip("on a GPU this operation leaves float32 to torch")
    return dtype


def run(backend, window, shift, **options):
    def call(qkv, table, padding=None):
        return window_attention(qkv, table, window=window, shift=shift, padding=padding, backend=backend, **options)

    return call


def tensors_for(seed, dtype, device, size, window, batch=2, heads=1, width=16, scale=1.0):
    rows = math.prod(2 * extent - 1 for extent in window)
    shapes = (batch, *size, 3, heads, width), (rows, heads), (3, heads, width)
    return [random(seed + i, *shape, dtype=dtype, device=device, scale=scale) for i, shape in enumerate(shapes)]


def check(seed, dtype, device, size, window, shift, faithful=True, **options):
    tensors = tensors_for(seed, dtype, device, size, window, **options)
    calls = [run(backend, window, shift, faithful=faithful) for backend in ("triton", "reference")]
    assert_matches(*calls, tensors)


@pytest.mark.parametrize(
    "size, window, shift, options",
    [
        (*SHORT, {"heads": 2}),
        ((1, 14, 7), (2, 7, 7), (0, 3, 3), {}),
        ((2, 8, 8), (4, 4, 4), (2, 2, 2), {"heads": 3, "batch": 1}),
        ((3, 4, 3), (4, 4, 4), (2, 0, 0), {"width": 48}),
        ((1, 16, 4), (1, 16, 4), (0, 0, 0), {"width": 64, "batch": 3}),
        ((1, 3, 3), (1, 1, 1), (0, 0, 0), {}),
    ],
    ids=str,
)
def test_short_windows_match_the_definition(seed, served, device, size, window, shift, options):
    check(seed, served, device, size, window, shift, **options)


@pytest.mark.parametrize(
    "size, window, shift, options",
    [(*LONG, {"batch": 1}), ((1, 13, 5), (1, 13, 5), (0, 0, 0), {"heads": 2, "batch": 1, "width": 32})],
    ids=str,
)
def test_long_windows_match_the_definition(seed, served, device, size, window, shift, options):
    check(seed, served, device, size, window, shift, **options)


@pytest.mark.parametrize("batch", [2, 3])
def test_long_windows_of_two_samples_at_once(seed, device, batch):
    check(seed, SMALL, device, (2, 7, 5), (2, 7, 5), (0, 0, 0), batch=batch)


def test_long_windows_shifted_on_two_axes(architecture, seed, device):
    check(seed, SMALL, device, (3, 6, 7), (2, 6, 6), (1, 0, 3), batch=1)


@pytest.mark.parametrize("tokens", [127, 128, 129])
def test_ends_of_tiles(seed, device, tokens):
    check(seed, SMALL, device, (1, 1, tokens), (1, 1, 130), (0, 0, 0), batch=1)


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize("size, window", [((2, 3, 2), (2, 5, 4)), ((3, 5, 5), (3, 6, 5))], ids=str)
def test_clipped_windows(seed, device, faithful, size, window):
    check(seed, SMALL, device, size, window, (0, 0, 0), faithful, batch=1)


@pytest.mark.parametrize("size, window, shift", [SHORT, LONG], ids=["short", "long"])
def test_small_values(seed, device, size, window, shift):
    check(seed, SMALL, device, size, window, shift, batch=1, scale=1e-3)


@pytest.mark.parametrize("size, window, shift", [SHORT, LONG], ids=["short", "long"])
def test_large_values(seed, device, size, window, shift):
    tensors = tensors_for(seed, SMALL, device, size, window, batch=1, scale=30.0)
    got = outputs_and_gradients(run("triton", window, shift), tensors)
    truths = outputs_and_gradients(run("reference", window, shift), [tensor.double() for tensor in tensors])
    q, k, _ = tensors[0].flatten(1, 3).double().unbind(2)
    # A score of size s is off by s times the precision of float32, in torch as much as here, and so is its weight.
    largest = torch.einsum("bnhd,bshd->bhns", q, k).abs().max().item() / 4
    tolerance = TOLERANCE[SMALL] + largest * torch.finfo(torch.float32).eps
    for result, truth in zip(got[0] + got[1], truths[0] + truths[1], strict=True):
        off = (result.double() - truth).norm() / (truth.norm() + tensors[0].norm())
        assert result.isfinite().all() and off < tolerance, f"off by {off:.1e}, more than {tolerance:.1e}"


@pytest.mark.parametrize("size, window, shift", [SHORT, LONG], ids=["short", "long"])
def test_any_strides_a_scale_of_the_callers_and_no_padding(seed, device, size, window, shift):
    def arranged(backend):
        def call(qkv, table):
            out = run(backend, window, shift, scale=0.3)(strided(qkv.permute(1, 2, 3, 4, 0, 6, 5)), table.t())
            # A sum hands back a gradient whose strides are all zero.
            return out.transpose(0, 4).sum(1)

        return call

    qkv, table, _ = tensors_for(seed, SMALL, device, size, window, batch=1)
    shuffled = qkv.permute(4, 0, 1, 2, 3, 6, 5).contiguous(), table.t().contiguous()
    assert_matches(arranged("triton"), arranged("reference"), shuffled)


@pytest.mark.parametrize("size, window, shift", [SHORT, ONE], ids=["short", "long"])
def test_the_same_bits_twice(seed, device, size, window, shift):
    tensors = tensors_for(seed, torch.float16, device, size, window, batch=1)
    first, second = (outputs_and_gradients(run("triton", window, shift), tensors) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[0] + first[1], second[0] + second[1], strict=True))


def test_under_autocast_products_are_narrow_and_gradients_are_not(seed, device):
    size, window, shift = SHORT
    tensors = [t.requires_grad_() for t in tensors_for(seed, torch.float32, device, size, window)]
    with torch.autocast(device.type, torch.float16):
        out = run("triton", window, shift)(*tensors)
    out.float().sum().backward()
    assert out.dtype == torch.float16
    assert all(tensor.grad.dtype == torch.float32 for tensor in tensors)


def test_what_is_refused_is_named(device):
    windows, padding = cut(*SHORT), torch.zeros(3, 1, 16, device=device)
    for width, dtype, message in (
        (24, SMALL, "multiple of 16"),
        (128, SMALL, "up to 64"),
        (16, torch.float64, "float"),
    ):
        qkv = torch.zeros(1, 2, 5, 6, 3, 1, width, dtype=dtype, device=device)
        against = OPERATION.backends["triton"].refuses(qkv, padding, padding, windows, 1.0)
        assert message in against


def test_is_one_graph(seed, device):
    size, window, shift = SHORT
    tensors = tensors_for(seed, SMALL, device, size, window, batch=1)
    call = run("triton", window, shift)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    (ours,), gradients = outputs_and_gradients(compiled, tensors)
    (eager,), expected = outputs_and_gradients(call, tensors)
    torch.testing.assert_close([ours, *gradients], [eager, *expected])
    torch.compiler.reset()


@pytest.mark.parametrize("size, window, shift", [SHORT, ONE], ids=["short", "long"])
def test_launchers_are_sound_operators(seed, device, size, window, shift):
    tensors = tensors_for(seed, SMALL, device, size, window, batch=1)
    operators, call = torch.ops.omnitrunk, (list(window), list(shift), True, 0.25)
    out, lse = operators.window_attention_forward(*tensors, *call)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(operators.window_attention_forward.default, (*tensors, *call), test_utils=tests)
    kept = out if len(lse) else None
    torch.library.opcheck(
        operators.window_attention_backward.default, (out, kept, lse, *tensors, *call), test_utils=tests
    )
