from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels import gather_tokens
from omnitrunk.kernels.gather_tokens import cost

from .compare import assert_agree, poisoned

BACKENDS = ["torch", "reference"]


def by_product(tokens, index):
    """Multiplication by a matrix of zeros and ones."""
    selection = torch.zeros(len(index), len(tokens), dtype=tokens.dtype)
    selection[torch.arange(len(index)), index] = 1
    return selection @ tokens


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "picked", "width"), [(7, 3, 5), (6, 6, 1), (1, 1, 3), (9, 1, 2)])
def test_picks_rows_and_returns_gradients_to_them(backend, rows, picked, width, seed, monkeypatch):
    torch.manual_seed(seed)
    tokens, index = torch.randn(rows, width), torch.randperm(rows)[:picked]
    poisoned(monkeypatch)
    assert_agree(lambda t: gather_tokens(t, index, backend=backend), lambda t: by_product(t, index), tokens)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_adds_up_the_gradients_of_rows_picked_twice(backend, seed):
    torch.manual_seed(seed)
    tokens, index = torch.randn(4, 3), torch.tensor([2, 2, 0, 2])
    assert_agree(
        lambda t: gather_tokens(t, index, unique=False, backend=backend), lambda t: by_product(t, index), tokens
    )
    with pytest.raises(ValueError, match="more than once"):
        gather_tokens(tokens, index, unique=False, backend="torch")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "width"), [(3, 2), (0, 2), (3, 0)])
def test_picks_nothing(backend, rows, width):
    tokens = torch.ones(rows, width, requires_grad=True)
    picked = gather_tokens(tokens, torch.zeros(0, dtype=torch.int64), backend=backend)
    picked.sum().backward()
    assert picked.shape == (0, width) and torch.equal(tokens.grad, torch.zeros(rows, width))


@pytest.mark.parametrize("backend", BACKENDS)
def test_serves_strided_tokens_and_gradients(backend, seed):
    torch.manual_seed(seed)
    tokens, index = torch.randn(3, 8), torch.tensor([5, 0, 7])
    assert_agree(
        lambda t: gather_tokens(t.t(), index, backend=backend).t(), lambda t: by_product(t.t(), index).t(), tokens
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend, seed):
    torch.manual_seed(seed)
    tokens = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: gather_tokens(t, torch.tensor([4, 1]), backend=backend), (tokens,))


def test_refuses_batches():
    with pytest.raises(ValueError, match=r"\(R, D\)"):
        gather_tokens(torch.ones(2, 3, 4), torch.tensor([0]))


def test_cost_of_backward_writes_every_row():
    assert cost(10, 4, picked=3).bytes == 2 * 4 * 6
    assert cost(10, 4, picked=3, backward=True).bytes == 2 * 4 * 13
