from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels import linear
from omnitrunk.kernels.linear import ROWS, cost, onednn_missing, onednn_refuses, onednn_weight_gradient, padded_rows

from .compare import assert_agree, poisoned

needs_onednn = pytest.mark.skipif(onednn_missing() is not None, reason=str(onednn_missing()))


def by_hand(x, weight, bias):
    return torch.einsum("...k,nk->...n", x, weight) + bias


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 5), (3, 7, 5), (64, 5), (2, 64, 33), (130, 3), (5,)])
@pytest.mark.parametrize("outputs", [1, 4, 37])
def test_onednn_matches_the_formula(shape, outputs, seed, monkeypatch):
    torch.manual_seed(seed)
    tensors = torch.randn(shape), torch.randn(outputs, shape[-1]), torch.randn(outputs)
    poisoned(monkeypatch)
    assert_agree(lambda *t: linear(*t, backend="onednn"), by_hand, *tensors)


@needs_onednn
def test_onednn_takes_strided_inputs_and_no_bias(seed):
    torch.manual_seed(seed)
    x, weight = torch.randn(6, 4, 10).transpose(0, 2), torch.randn(6, 7).t()
    assert_agree(lambda x, w: linear(x[:, ::2], w, backend="onednn"), lambda x, w: by_hand(x[:, ::2], w, 0), x, weight)


def test_rows_are_rounded_up_a_little_to_few_sizes():
    x = torch.arange(1.0, 5001)[:, None]
    for rows in range(1, len(x) + 1):
        padded = padded_rows(x[:rows])
        assert torch.equal(padded[:rows], x[:rows]) and not padded[rows:].any()
        assert len(padded) - rows < max(8, rows / 32) and (rows % ROWS or len(padded) == rows)
    assert len({len(padded_rows(x[:rows])) for rows in range(1, 1025)}) <= 32 * 3


@needs_onednn
@pytest.mark.parametrize("widths", [(3, 8), (8, 3), (4, 4)])
@pytest.mark.parametrize("rows", [2, ROWS])
def test_all_forms_of_the_weight_gradient_come_as_said(widths, rows, seed):
    torch.manual_seed(seed)
    grad, x = torch.randn(rows, widths[0]), torch.randn(rows, widths[1])
    found = onednn_weight_gradient(grad, x)
    torch.testing.assert_close(found, grad.t() @ x, rtol=1e-4, atol=1e-4)
    assert found.is_contiguous() or widths[1] < min(widths[0], rows)


@needs_onednn
def test_the_output_may_be_changed_in_place(seed):
    torch.manual_seed(seed)
    x, weight, bias = torch.randn(3, 5), torch.randn(2, 5, requires_grad=True), torch.randn(2)
    linear(x, weight, bias, backend="onednn").add_(1).relu_().sum().backward()
    assert weight.grad.shape == (2, 5)


@needs_onednn
def test_onednn_computes_only_the_gradients_asked_for_and_refuses_a_second_derivative():
    x, weight, bias = torch.ones(2, 3), torch.ones(2, 3, requires_grad=True), torch.ones(2)
    (grad,) = torch.autograd.grad(linear(x, weight, bias, backend="onednn").square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    assert bias.grad is None and x.grad is None


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (2, 3)])
def test_auto_serves_empty_and_double_inputs(shape, seed):
    torch.manual_seed(seed)
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(2, shape[-1], dtype=torch.float64)
    torch.testing.assert_close(linear(x, weight), by_hand(x, weight, 0))
    torch.testing.assert_close(linear(x.float(), weight.float()), by_hand(x, weight, 0).float())


def test_autocast_keeps_its_dtype():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == torch.bfloat16


def test_gradcheck_of_the_definition(seed):
    torch.manual_seed(seed)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4), (5, 4), (5,))]
    assert torch.autograd.gradcheck(lambda *t: linear(*t, backend="reference"), tensors)


def test_refuses_widths_that_do_not_match():
    with pytest.raises(ValueError, match="last axis"):
        linear(torch.ones(2, 3), torch.ones(4, 2))


def test_cost_counts_both_products_of_the_backward_pass():
    forward, backward = cost(10, 3, 4), cost(10, 3, 4, backward=True)
    assert forward.flop == 2 * 10 * 3 * 4 and backward.flop == 2 * forward.flop
    assert forward.bytes == 2 * (10 * 3 + 3 * 4 + 10 * 4)


def test_half_of_the_columns_of_a_weight(seed):
    """For weights whose rows lie apart oneDNN has a reference implementation, two hundred times slower."""
    x, weight = torch.randn(64, 32), torch.randn(16, 64)
    half = weight.chunk(2, dim=1)[1]
    torch.testing.assert_close(linear(x, half), x @ half.T)
    assert "lie apart" in str(onednn_refuses(x, half))
