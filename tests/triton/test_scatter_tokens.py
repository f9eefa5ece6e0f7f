from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from omnitrunk.kernels import gpu
from omnitrunk.kernels.scatter_tokens import reference, scatter_tokens
from omnitrunk.kernels.scatter_tokens.triton_kernels import sum_bare_rows
from tests.triton.compare import assert_matches, error, random, strided


def tensors(seed, dtype, device, covered, positions, width, options, scale=1.0):
    shapes = (covered, width), (width,), (positions, width)
    rows, fill, table = (
        random(seed + i, *shape, dtype=dtype, device=device, scale=scale) for i, shape in enumerate(shapes)
    )
    return [rows, fill if "fill" in options else None, table if "table" in options else None]


def both(seed, size, covered, device):
    index = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:covered].to(device)

    def ours(rows, fill, table):
        return scatter_tokens(rows, index, size, fill=fill, table=table, backend="triton")

    return ours, lambda rows, fill, table: reference(rows, index, size, fill, table)


@pytest.mark.parametrize("options", [(), ("fill",), ("table",), ("fill", "table")], ids=str)
@pytest.mark.parametrize(
    ("samples", "positions", "covered", "width"),
    [(3, 17, 13, 48), (40, 1, 9, 257), (9, 3, 27, 1), (1, 64, 1, 66), (7, 9, 0, 16)],
)
def test_matches_the_definition(seed, dtype, device, samples, positions, covered, width, options):
    calls = both(seed, samples * positions, covered, device)
    assert_matches(*calls, tensors(seed, dtype, device, covered, positions, width, options))


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_small_and_large_values(seed, device, scale):
    inputs = tensors(seed, torch.float32, device, 11, 6, 40, ("fill", "table"), scale)
    assert_matches(*both(seed, 30, 11, device), inputs)


def test_strided_inputs(seed, device):
    inputs = [strided(t) for t in tensors(seed, torch.float32, device, 11, 6, 40, ("fill", "table"))]
    assert_matches(*both(seed, 30, 11, device), inputs)


def test_no_rows_at_all(device):
    fill, nowhere = torch.ones(8, device=device, requires_grad=True), torch.zeros(0, dtype=torch.int64, device=device)
    out = scatter_tokens(torch.ones(0, 8, device=device), nowhere, 0, fill=fill, backend="triton")
    out.sum().backward()
    assert out.shape == (0, 8) and fill.grad.eq(0).all()


def test_the_result_has_the_dtype_of_the_rows(seed, device):
    rows, fill = random(seed, 3, 16, dtype=torch.float16, device=device), random(seed + 1, 16, device=device)
    fill.requires_grad_()
    index = torch.tensor([1, 4, 0], device=device)
    out = scatter_tokens(rows, index, 6, fill=fill, table=random(seed + 2, 3, 16, device=device), backend="triton")
    out.sum().backward()
    assert out.dtype == torch.float16 and fill.grad.dtype == torch.float32 and fill.grad.eq(3).all()


def test_covered_rows_have_no_part_in_the_sums(device):
    fill = torch.zeros(16, device=device, requires_grad=True)
    rows, index = torch.zeros(2, 16, device=device), torch.tensor([2, 0], device=device)
    grad = torch.full((3, 16), float("nan"), device=device)
    grad[1] = 5
    scatter_tokens(rows, index, 3, fill=fill, backend="triton").backward(grad)
    assert fill.grad.eq(5).all()


@pytest.mark.parametrize("multiprocessors", [1, 5, 500])
def test_sums_over_any_number_of_programs(seed, device, multiprocessors, monkeypatch):
    monkeypatch.setattr(gpu, "multiprocessors", lambda device: multiprocessors)
    grad = random(seed, 21 * 6, 40, device=device)
    source = torch.randint(-2, 2, (21 * 6,), generator=torch.Generator().manual_seed(seed)).int().to(device)
    expected = torch.where((source < 0)[:, None], grad.double(), 0).view(21, 6, 40).sum(0)
    assert error(sum_bare_rows(grad, source, 6), expected) < 1e-5


def test_a_place_that_there_is_not_is_left_out(seed, device):
    rows, index = random(seed, 3, 16, device=device).requires_grad_(), torch.tensor([1, 4, -1], device=device)
    out = scatter_tokens(rows, index, 3, backend="triton")
    out.sum().backward()
    assert torch.equal(out[1], rows[0]) and out[[0, 2]].eq(0).all()
    assert rows.grad[0].eq(1).all() and rows.grad[1:].isnan().all()


def test_float64_is_left_to_others(device):
    rows, index = torch.ones(1, 4, dtype=torch.float64, device=device), torch.tensor([0], device=device)
    with pytest.raises(ValueError, match="float64"):
        scatter_tokens(rows, index, 2, backend="triton")


def test_is_one_graph_of_sound_operators(seed, device):
    source = torch.tensor([-1, 0, 1, -1], dtype=torch.int32, device=device)
    torch.library.opcheck(
        torch.ops.omnitrunk.sum_bare_rows.default,
        (random(seed, 4, 24, device=device), source, 2),
        test_utils=("test_schema", "test_faketensor"),
    )
    ours, definition = both(seed, 30, 11, device)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_matches(compiled, definition, tensors(seed, torch.float32, device, 11, 6, 40, ("fill", "table")))
    torch.compiler.reset()
