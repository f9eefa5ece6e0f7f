from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from omnitrunk.kernels.gather_tokens import gather_tokens, reference
from omnitrunk.kernels.gather_tokens.triton_kernels import pick_rows, place_rows
from tests.triton.compare import assert_matches, random, strided


def picked(seed, rows, count, device):
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:count].to(device)


def both(index):
    return lambda t: gather_tokens(t, index, backend="triton"), lambda t: reference(t, index)


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (5, 0), (33, 31), (32, 32), (40, 33)])
@pytest.mark.parametrize("width", [1, 48, 257])
def test_matches_the_definition(seed, dtype, device, rows, count, width):
    index = picked(seed, rows, count, device)
    assert_matches(*both(index), [random(seed, rows, width, dtype=dtype, device=device)])


def test_strided_tokens_and_index(seed, device):
    index = strided(picked(seed, 20, 7, device))
    assert_matches(*both(index), [random(seed, 24, 20, device=device).t()])


@pytest.mark.parametrize("shape", [(0, 16), (3, 0)])
def test_nothing_to_move(device, shape):
    tokens = torch.ones(shape, device=device, requires_grad=True)
    out = gather_tokens(tokens, torch.zeros(0, dtype=torch.int64, device=device), backend="triton")
    out.sum().backward()
    assert out.shape == (0, shape[1]) and torch.equal(tokens.grad, torch.zeros_like(tokens))


def test_a_row_that_is_picked_keeps_every_bit(seed, device):
    words = torch.randint(-(2**31), 2**31, (9, 40), generator=torch.Generator().manual_seed(seed)).int()
    index = picked(seed, 9, 6, device)
    rows = pick_rows(words.view(torch.float32).to(device), index)
    assert torch.equal(rows.view(torch.int32), words.to(device)[index])
    back, source = place_rows(rows, index, 9, None, None)
    assert torch.equal(back.view(torch.int32)[index], rows.view(torch.int32)) and (source < 0).sum() == 3


def test_an_index_outside_of_the_buffer_reads_and_writes_nothing_else(seed, device):
    tokens = random(seed, 5, 8, device=device)
    index = torch.tensor([4, 5, -1, 0, 2**40], device=device)
    rows = pick_rows(tokens, index)
    assert torch.equal(rows[[0, 3]], tokens[[4, 0]]) and rows[[1, 2, 4]].isnan().all()
    out, source = place_rows(tokens, index, 5, None, None)
    assert source.tolist() == [3, -1, -1, -1, 0]
    assert torch.equal(out[[0, 4]], tokens[[3, 0]]) and out[1:4].eq(0).all()


def test_offsets_beyond_two_to_the_31(seed, device):
    rows = 2**31 // 256 + 3
    tokens = torch.empty(rows, 256, dtype=torch.float16, device=device)  # memory is taken where it is touched
    tokens[-2:] = random(seed, 2, 256, dtype=torch.float16, device=device)
    index = torch.tensor([rows - 1, rows - 2], device=device)
    assert torch.equal(pick_rows(tokens, index), tokens[-2:].flip(0))


def test_the_inverse_may_hold_anything_where_no_row_is_placed(seed, device, monkeypatch):
    index = torch.tensor([3, 1], device=device)
    rows = random(seed, 2, 8, device=device)
    for left_over in (0, 1, -7, 2):
        made = torch.empty

        def new(shape, dtype, device, made=made, left_over=left_over):
            return made(shape, dtype=dtype, device=device).fill_(left_over)

        monkeypatch.setattr("omnitrunk.kernels.gpu.new", new)
        out, source = place_rows(rows, index, 6, None, None)
        assert source.tolist() == [-1, 1, -1, 0, -1, -1]
        assert torch.equal(out[[3, 1]], rows) and out[[0, 2, 4, 5]].eq(0).all()


def test_rows_picked_twice_are_left_to_the_definition(device):
    index = torch.tensor([1, 1], device=device)
    with pytest.raises(ValueError, match="more than once"):
        gather_tokens(torch.ones(2, 4, device=device), index, unique=False, backend="triton")


def test_is_one_graph_of_sound_operators(seed, device):
    tokens, index = random(seed, 9, 24, device=device), picked(seed, 9, 4, device)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.omnitrunk.pick_rows.default, (tokens, index), test_utils=tests)
    torch.library.opcheck(
        torch.ops.omnitrunk.place_rows.default, (tokens[:4].clone(), index, 9, None, None), test_utils=tests
    )
    compiled = torch.compile(lambda t: gather_tokens(t, index, backend="triton"), fullgraph=True, backend="aot_eager")
    assert_matches(compiled, lambda t: reference(t, index), [tokens])
    torch.compiler.reset()
