"""How the tests of Triton kernels compare with a definition in float64."""

from __future__ import annotations

import torch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 8e-3}


def random(seed, *shape, dtype=torch.float32, device="cpu", scale=1.0):
    """Normal values, rounded to dtype."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).to(device)


def strided(tensor):
    """The same values in memory that is not contiguous."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def error(result, expected):
    """|result - expected| / |expected|; what is not finite in one only counts as infinite."""
    assert result.shape == expected.shape, (result.shape, expected.shape)
    result, expected = result.detach().double().cpu(), expected.detach().double().cpu()
    assert result.isfinite().all() or not expected.isfinite().all(), "not finite: memory that was never written?"
    return ((result - expected).norm() / expected.norm().clamp(min=1e-30)).item() if expected.numel() else 0.0


def outputs_and_gradients(call, tensors):
    """Results of call(*tensors), one tensor or several, and the gradients of a fixed random combination of them."""
    inputs = [
        None if t is None else t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors
    ]
    outputs = call(*inputs)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    directions = [
        random(7 + i, *output.shape, dtype=output.dtype, device=output.device) for i, output in enumerate(outputs)
    ]
    torch.autograd.backward(outputs, directions)
    return list(outputs), [None if t is None else t.grad for t in inputs]


def assert_matches(fast, definition, tensors, *, tolerance=None):
    """Outputs and gradients of `fast` on tensors of one dtype against `definition` on float64 copies.

    tensors: floating tensors or None. A gradient that the definition does not have is ignored.
    """
    dtype = next(t.dtype for t in tensors if t is not None)
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    got = outputs_and_gradients(fast, tensors)
    expected = outputs_and_gradients(definition, [None if t is None else t.double() for t in tensors])
    for kind, results, truths in zip(("output", "gradient"), got, expected, strict=True):
        for place, (result, truth) in enumerate(zip(results, truths, strict=True)):
            if truth is None:
                continue
            assert result is not None, f"{kind} {place} is missing"
            off = error(result, truth)
            assert off < tolerance, f"{kind} {place} is off by {off:.1e}, more than {tolerance:.0e}"
