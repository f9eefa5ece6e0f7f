from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels.linear_cross_entropy import MOST_CLASSES, chunked, linear_cross_entropy, reference
from tests.triton.compare import TOLERANCE, assert_matches, error, random, strided


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 16 rows, whatever the number of classes."""
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 1)


def problem(seed, dtype, device, rows, width, classes, mixed=False, scale=1.0):
    tensors = [
        random(seed, rows, width, dtype=dtype, device=device, scale=scale),
        random(seed + 1, classes, width, dtype=dtype, device=device),
        random(seed + 2, classes, dtype=dtype, device=device),
    ]
    generator = torch.Generator().manual_seed(seed)
    if mixed:
        return tensors, torch.rand(rows, classes, generator=generator).to(device)
    target = torch.randint(0, classes, (rows,), generator=generator)
    target[torch.rand(rows, generator=generator) < 0.2] = -100
    target[:1] = classes - 1
    return tensors, target.to(device)


def calls(target, label_smoothing=0.0):
    def ours(*tensors):
        return linear_cross_entropy(*tensors, target, label_smoothing=label_smoothing, backend="triton")

    return ours, lambda *tensors: reference(*tensors, target.double() if target.dim() == 2 else target, label_smoothing)


@pytest.mark.parametrize("mixed", [False, True], ids=["classes", "weights"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (17, 15), (33, 16), (20, 133), (3, 1000)])
def test_matches_the_definition(seed, dtype, device, mixed, label_smoothing, rows, classes):
    tensors, target = problem(seed, dtype, device, rows, 12, classes, mixed)
    assert_matches(*calls(target, label_smoothing), tensors, tolerance=2 * TOLERANCE[dtype])


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_small_and_large_logits(seed, device, scale):
    tensors, target = problem(seed, torch.float32, device, 20, 16, 40, scale=scale)
    assert_matches(*calls(target, 0.1), tensors, tolerance=2e-5)


def test_strided_inputs(seed, device):
    tensors, target = problem(seed, torch.float32, device, 20, 16, 40)
    assert_matches(*calls(strided(target)), [strided(t) for t in tensors])


def test_masked_logits_count_as_impossible(seed, device):
    (x, weight, bias), target = problem(seed, torch.float32, device, 9, 8, 20)
    bias[3:7] = -float("inf")
    assert_matches(*calls(target.where((target < 3) | (target >= 7), 0)), [x, weight, bias])


@pytest.mark.parametrize("rows", [0, 20])
def test_where_no_row_counts_the_loss_is_nan_and_gradients_are_0(device, rows):
    tensors = [torch.randn(shape, device=device).requires_grad_() for shape in ((rows, 3), (4, 3), (4,))]
    loss = calls(torch.full((rows,), -100, device=device))[0](*tensors)
    loss.backward()
    assert loss.isnan() and all((tensor.grad == 0).all() for tensor in tensors)


def test_a_class_out_of_range_makes_the_loss_nan(seed, device):
    tensors, target = problem(seed, torch.float32, device, 20, 3, 4)
    for bad in (4, -1):
        target[3] = bad
        assert calls(target)[0](*tensors).isnan()


def test_without_gradients_the_logits_stay(seed, device):
    from omnitrunk.kernels.linear_cross_entropy.triton_kernels import softmax_gradient

    logits, target = random(seed, 5, 7, device=device), torch.tensor([0, 6, -100, 3, 2], device=device)
    before = logits.clone()
    losses = softmax_gradient(logits, target, 0.0, -100, False)
    expected = torch.nn.functional.cross_entropy(before.double(), target, reduction="none")
    assert torch.equal(logits, before) and error(losses, expected) < 1e-5 and losses[2] == 0


def test_second_derivatives_are_refused(seed, device):
    tensors, target = problem(seed, torch.float32, device, 5, 4, 6)
    loss = calls(target)[0](*(t.requires_grad_() for t in tensors))
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(loss, tensors, create_graph=True)


def test_refuses_what_it_cannot_serve(seed, device):
    tensors, target = problem(seed, torch.float64, device, 5, 1, 3)
    with pytest.raises(ValueError, match="float32 or narrower"):
        calls(target)[0](*tensors)
    tensors, target = problem(seed, torch.float32, device, 5, 1, MOST_CLASSES + 1)
    with pytest.raises(ValueError, match="at most"):
        calls(target)[0](*tensors)
