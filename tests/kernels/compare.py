"""What the tests of several operations share."""

from __future__ import annotations

import torch


def leaves(*tensors):
    """Fresh copies that ask for gradients."""
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def outputs_and_gradients(call, *tensors):
    """The output of call(*tensors) and the gradients of a fixed random combination of it."""
    inputs = leaves(*tensors)
    output = call(*inputs)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    output.backward(direction.to(output.dtype))
    return [output.detach(), *(torch.zeros_like(t) if t.grad is None else t.grad for t in inputs)]


def assert_agree(fast, slow, *tensors, tolerance=1e-5):
    """Output and gradients of `fast` on float32 tensors against `slow` on float64 copies, relative to their norm.

    Norms far below 0.1 count as nothing: what cancels to zero leaves rounding behind.
    """
    got = outputs_and_gradients(fast, *tensors)
    expected = outputs_and_gradients(slow, *(tensor.double() for tensor in tensors))
    for place, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape, place
        error = (a.double() - b).norm() / (b.norm() + 0.1)
        assert error < tolerance, f"tensor {place} is off by {error:.1e}"


def poisoned(monkeypatch):
    """From here on, fresh memory holds NaN (or -1), so that what is read before it is written shows."""

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else -1)

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
