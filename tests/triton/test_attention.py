from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from omnitrunk.kernels import gpu
from omnitrunk.kernels.attention import attention
from tests.triton.compare import TOLERANCE, assert_matches, outputs_and_gradients, random, strided

SMALL = torch.float32 if gpu.interpreted() else torch.bfloat16
"""The dtype of tests in one dtype: on a GPU this operation leaves float32 to torch."""


@pytest.fixture(params=["default", "sm_90"])
def architecture(request, monkeypatch):
    """Settings of more than one column: other kernels for the same sizes, and programs that walk over heads."""
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


def run(backend, **options):
    return lambda q, k, v: attention(q, k, v, backend=backend, **options)


def dense(seed, dtype, device, batch, queries, keys, heads, width, scale=1.0):
    shapes = (batch, queries, heads, width), *2 * [(batch, keys, heads, width)]
    return [random(seed + i, *shape, dtype=dtype, device=device, scale=scale) for i, shape in enumerate(shapes)]


def ragged(seed, dtype, device, lengths_q, lengths_k, heads, width):
    shapes = (sum(lengths_q), heads, width), *2 * [(sum(lengths_k), heads, width)]
    tensors = [random(seed + i, *shape, dtype=dtype, device=device) for i, shape in enumerate(shapes)]
    cu_q, cu_k = (torch.tensor([0, *n]).cumsum(0).int().to(device) for n in (lengths_q, lengths_k))
    longest = {"max_seqlen_q": max(lengths_q), "max_seqlen_k": max(lengths_k)}
    return tensors, {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, **longest}


def sequence_by_sequence(cu_seqlens_q, cu_seqlens_k, **_longest):
    """The definition on slices, so that no other way to pick rows has a part in it."""

    def call(q, k, v):
        ends_q, ends_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        outputs = []
        for (begin_q, end_q), (begin_k, end_k) in zip(pairwise(ends_q), pairwise(ends_k), strict=True):
            parts = q[None, begin_q:end_q], k[None, begin_k:end_k], v[None, begin_k:end_k]
            outputs.append(attention(*parts, backend="reference")[0])
        return torch.cat(outputs)

    return call


@pytest.mark.parametrize(
    "sizes",
    [(2, 64, 64, 2, 16), (3, 65, 99, 1, 32), (1, 33, 128, 2, 48), (3, 50, 50, 2, 64), (1, 128, 99, 1, 80)],
    ids=str,
)
def test_one_tile_matches_the_definition(architecture, seed, served, device, sizes):
    assert_matches(run("triton"), run("reference"), dense(seed, served, device, *sizes))


@pytest.mark.parametrize(
    "sizes", [(2, 129, 129, 1, 32), (1, 64, 197, 2, 16), (2, 196, 98, 1, 32), (1, 7, 256, 2, 64)], ids=str
)
def test_keys_that_stay_on_chip_match_the_definition(architecture, seed, served, device, sizes):
    assert_matches(run("triton"), run("reference"), dense(seed, served, device, *sizes))


@pytest.mark.parametrize(
    "sizes", [(5, 26, 26, 2, 16), (3, 1, 1, 2, 16), (9, 7, 16, 1, 32), (2, 32, 5, 2, 48), (4, 16, 16, 1, 64)], ids=str
)
def test_sequences_that_share_a_tile_match_the_definition(seed, served, device, sizes):
    assert_matches(run("triton"), run("reference"), dense(seed, served, device, *sizes))


@pytest.mark.parametrize(
    "lengths",
    [
        ([5, 0, 64, 1], [7, 3, 0, 65]),
        ([17, 16, 15], [17, 16, 15]),
        ([0, 150, 3], [30, 129, 0]),
        ([20, 20, 20], [20, 20, 20]),
    ],
    ids=str,
)
def test_ragged_sequences_match_the_definition(architecture, seed, served, device, lengths):
    tensors, options = ragged(seed, served, device, *lengths, 2, 16)
    assert_matches(run("triton", **options), sequence_by_sequence(**options), tensors)


@pytest.mark.parametrize("tokens", [20, 50, 100])
def test_programs_that_walk_over_all_heads(seed, device, tokens, monkeypatch):
    table = gpu.settings
    monkeypatch.setattr(gpu, "settings", lambda *key: {**table(*key), "PERSISTENT": 1, "STAGES": 2})
    assert_matches(run("triton"), run("reference"), dense(seed, SMALL, device, 7, tokens, tokens, 2, 16))
    tensors, options = ragged(seed, SMALL, device, [tokens, 0, 3, 40], [tokens, 5, 0, 39], 2, 16)
    assert_matches(run("triton", **options), sequence_by_sequence(**options), tensors)


@pytest.mark.parametrize("keys", [20, 60, 130])
def test_small_values(seed, device, keys):
    assert_matches(run("triton"), run("reference"), dense(seed, SMALL, device, 2, keys, keys, 1, 16, 1e-3))


@pytest.mark.parametrize("keys", [20, 60, 130])
def test_large_values(seed, device, keys):
    tensors = dense(seed, SMALL, device, 2, keys, keys, 1, 16, 30.0)
    outputs, gradients = outputs_and_gradients(run("triton"), tensors)
    truths, true_gradients = outputs_and_gradients(run("reference"), [t.double() for t in tensors])
    # A score of size s is off by s times the precision of float32, in torch as much as here, and so is its weight.
    largest = torch.einsum("bnhd,bshd->bhns", tensors[0].double(), tensors[1].double()).abs().max().item() / 4
    tolerance = TOLERANCE[SMALL] + largest * torch.finfo(torch.float32).eps
    pairs = zip(outputs + gradients, truths + true_gradients, [tensors[2], *tensors], strict=True)
    for result, truth, given in pairs:
        assert result.isfinite().all()
        # Most queries see one key only, which leaves nothing but rounding of the gradients of q and k.
        off = (result.double() - truth).norm() / (truth.norm() + given.norm())
        assert off < tolerance, f"off by {off:.1e}, more than {tolerance:.1e}"


@pytest.mark.parametrize("scale", [0.3, -1.0, 0.0])
@pytest.mark.parametrize("keys", [40, 140])
def test_a_scale_of_the_callers(seed, device, scale, keys):
    tensors = dense(seed, SMALL, device, 1, keys, keys, 2, 16)
    assert_matches(run("triton", scale=scale), run("reference", scale=scale), tensors)


@pytest.mark.parametrize("tokens", [10, 40, 130])
def test_slices_of_one_projection_are_read_in_place(seed, device, tokens):
    def joint(backend):
        return lambda qkv: attention(*qkv.unbind(2), backend=backend)

    assert_matches(joint("triton"), joint("reference"), [random(seed, 2, tokens, 3, 2, 16, dtype=SMALL, device=device)])


@pytest.mark.parametrize("tokens", [10, 40, 130])
def test_any_strides(seed, device, tokens):
    def arranged(backend):
        def call(q, k, v):
            out = attention(q.permute(2, 0, 1, 3), k.transpose(1, 2), strided(v), backend=backend)
            # A sum hands back a gradient whose strides are all zero.
            return out.transpose(0, 3).sum(1)

        return call

    shapes = (tokens, 2, 3, 16), (3, 2, tokens, 16), (3, tokens, 2, 16)
    tensors = [random(seed + i, *shape, dtype=SMALL, device=device) for i, shape in enumerate(shapes)]
    assert_matches(arranged("triton"), arranged("reference"), tensors)


@pytest.mark.parametrize("sizes", [(0, 3, 3, 2, 16), (2, 0, 3, 2, 16), (2, 3, 0, 2, 16), (2, 3, 3, 0, 16)], ids=str)
def test_without_samples_queries_keys_or_heads(device, sizes):
    tensors = [t.requires_grad_() for t in dense(0, SMALL, device, *sizes)]
    out = attention(*tensors, backend="triton")
    out.sum().backward()
    assert out.shape == tensors[0].shape and out.eq(0).all()
    assert all(t.grad.eq(0).all() for t in tensors)


@pytest.mark.parametrize("lengths", [([0, 0], [0, 0]), ([0, 0], [3, 4]), ([3, 4], [0, 0])], ids=str)
def test_only_empty_sequences(seed, device, lengths):
    tensors, options = ragged(seed, SMALL, device, *lengths, 2, 16)
    out, gradients = outputs_and_gradients(run("triton", **options), tensors)
    assert out[0].shape == tensors[0].shape
    assert all(t.eq(0).all() for t in (*out, *gradients))


@pytest.mark.parametrize("tokens", [20, 130])
def test_the_same_bits_twice(seed, device, tokens):
    tensors = dense(seed, torch.float16, device, 3, tokens, tokens, 2, 16)
    first, second = (outputs_and_gradients(run("triton"), tensors) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[0] + first[1], second[0] + second[1], strict=True))
