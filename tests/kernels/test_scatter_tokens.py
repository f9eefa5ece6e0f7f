from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels import scatter_tokens
from omnitrunk.kernels.scatter_tokens import cost

from .compare import assert_agree, poisoned

BACKENDS = ["torch", "reference"]


def by_loop(rows, index, size, fill, table):
    """One output row after the other."""
    places = {place: row for row, place in enumerate(index.tolist())}
    return torch.stack([rows[places[r]] if r in places else fill + table[r % len(table)] for r in range(size)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("size", "covered", "positions", "width"), [(12, 5, 4, 3), (6, 0, 6, 2), (6, 6, 3, 2), (9, 1, 1, 1)]
)
def test_matches_the_loop(backend, size, covered, positions, width, seed, monkeypatch):
    torch.manual_seed(seed)
    index = torch.randperm(size)[:covered]
    tensors = torch.randn(covered, width), torch.randn(width), torch.randn(positions, width)
    poisoned(monkeypatch)

    def call(rows, fill, table):
        return scatter_tokens(rows, index, size, fill=fill, table=table, backend=backend)

    assert_agree(call, lambda rows, fill, table: by_loop(rows, index, size, fill, table), *tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fill_and_table_may_be_left_out(backend, seed):
    torch.manual_seed(seed)
    rows, index, fill, table = torch.randn(2, 3), torch.tensor([4, 1]), torch.randn(3), torch.randn(2, 3)
    nothing = torch.zeros(3), torch.zeros(2, 3)
    for given in ({}, {"fill": fill}, {"table": table}):
        expected = by_loop(rows, index, 6, given.get("fill", nothing[0]), given.get("table", nothing[1]))
        assert torch.equal(scatter_tokens(rows, index, 6, **given, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fixed_table_gets_no_gradient(backend):
    rows, table = torch.ones(1, 2, requires_grad=True), torch.ones(3, 2)
    fill = torch.zeros(2, requires_grad=True)
    scatter_tokens(rows, torch.tensor([1]), 3, fill=fill, table=table, backend=backend).sum().backward()
    assert fill.grad.tolist() == [2, 2] and rows.grad.eq(1).all() and table.grad is None


def test_the_gradient_of_a_fill_that_is_nowhere_is_exactly_zero(seed):
    torch.manual_seed(seed)
    fill = torch.zeros(3, requires_grad=True)
    out = scatter_tokens(torch.randn(5, 3), torch.randperm(5), 5, fill=fill)
    out.backward(torch.randn(5, 3) * 1e3)
    assert fill.grad.eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_and_strided(backend, seed):
    torch.manual_seed(seed)
    nowhere = torch.zeros(0, dtype=torch.int64)
    assert scatter_tokens(torch.ones(0, 3), nowhere, 0, fill=torch.ones(3), backend=backend).shape == (0, 3)
    rows, table, index = torch.randn(3, 8), torch.randn(3, 4), torch.randperm(12)[:8]

    def call(rows, table):
        return scatter_tokens(rows.t(), index, 12, table=table.t(), backend=backend).t()

    assert_agree(call, lambda r, t: by_loop(r.t(), index, 12, torch.zeros(3), t.t()).t(), rows, table)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend, seed):
    torch.manual_seed(seed)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (3,), (2, 3))]

    def call(rows, fill, table):
        return scatter_tokens(rows, torch.tensor([3, 0]), 4, fill=fill, table=table, backend=backend)

    assert torch.autograd.gradcheck(call, tensors)


def test_refuses_what_does_not_fit():
    rows, index = torch.ones(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="does not divide"):
        scatter_tokens(rows, index, 5, table=torch.ones(2, 3))
    with pytest.raises(ValueError, match="fill"):
        scatter_tokens(rows, index, 4, fill=torch.ones(2))
    with pytest.raises(ValueError, match=r"\(M, D\)"):
        scatter_tokens(rows, index[:1], 4)


def test_cost_moves_every_row_once():
    assert cost(3, 4, size=10).bytes == 2 * 4 * 13
