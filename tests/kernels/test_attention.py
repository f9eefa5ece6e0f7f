from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels import attention
from omnitrunk.kernels.attention import OPERATION, cost

from .compare import assert_agree, outputs_and_gradients, poisoned

WITHOUT = OPERATION.backends["cpu"].missing()
needs_module = pytest.mark.skipif(WITHOUT is not None, reason=str(WITHOUT))
BACKENDS = [pytest.param("cpu", marks=needs_module), "sdpa", "reference"]


def one_query_at_a_time(q, k, v, scale):
    """(N, d) queries on (S, d) keys and values: softmax by its definition, no product of matrices."""
    outputs = []
    for query in q:
        scores = (query * k).sum(1) * scale
        shares = (scores - scores.max()).exp() if len(scores) else scores
        outputs.append((shares.unsqueeze(1) * v).sum(0) / (shares.sum() if len(scores) else 1))
    return torch.stack(outputs) if outputs else q


def by_loop(q, k, v, scale):
    batches = []
    for sample in range(len(q)):
        heads = [one_query_at_a_time(*(x[sample, :, head] for x in (q, k, v)), scale) for head in range(q.shape[2])]
        batches.append(torch.stack(heads, 1))
    return torch.stack(batches)


def random_tensors(batch, queries, keys, heads, width):
    shapes = ((batch, queries, heads, width), (batch, keys, heads, width), (batch, keys, heads, width))
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "sizes", [(2, 5, 5, 3, 16), (1, 1, 1, 1, 16), (2, 3, 17, 2, 48), (1, 66, 16, 1, 32), (1, 9, 65, 9, 16)]
)
@pytest.mark.parametrize("spread", [1e-3, 1.0, 5.0])
def test_matches_one_query_at_a_time(backend, sizes, spread, seed, monkeypatch):
    torch.manual_seed(seed)
    q, k, v = random_tensors(*sizes)
    poisoned(monkeypatch)
    scale = sizes[-1] ** -0.5
    assert_agree(
        lambda *t: attention(*t, backend=backend), lambda *t: by_loop(*t, scale), q * spread, k, v, tolerance=1e-4
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_in_the_thousands(backend, seed):
    torch.manual_seed(seed)
    q, k, v = random_tensors(2, 5, 6, 2, 16)
    # Multiples of 1/8 make the scores exact, so that rounding cannot decide which key wins.
    q, k = (q * 8).round() * 100, (k * 8).round() / 8
    out, *gradients = outputs_and_gradients(lambda *t: attention(*t, scale=0.5, backend=backend), q, k, v)
    expected = by_loop(q.double(), k.double(), v.double(), 0.5)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_projections_and_a_scale_of_the_callers(backend, seed):
    torch.manual_seed(seed)
    packed = torch.randn(2, 6, 3, 2, 16)
    assert_agree(
        lambda x: attention(*x.unbind(2), scale=0.3, backend=backend), lambda x: by_loop(*x.unbind(2), 0.3), packed
    )


def test_gradcheck_of_the_definition(seed):
    torch.manual_seed(seed)
    tensors = [tensor.double().requires_grad_() for tensor in random_tensors(2, 3, 4, 2, 3)]
    assert torch.autograd.gradcheck(lambda *t: attention(*t, backend="reference"), tensors)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize("sizes", [(0, 3, 3, 2, 16), (2, 0, 3, 2, 16), (2, 3, 0, 2, 16)])
def test_without_samples_queries_or_keys(backend, sizes):
    tensors = [tensor.requires_grad_() for tensor in random_tensors(*sizes)]
    out = attention(*tensors, backend=backend)
    out.sum().backward()
    assert out.shape == tensors[0].shape and out.eq(0).all()
    assert all(tensor.grad.eq(0).all() for tensor in tensors)


def ragged(lengths_q, lengths_k, heads=2, width=16):
    cu_q, cu_k = (torch.tensor([0, *lengths]).cumsum(0).int() for lengths in (lengths_q, lengths_k))
    q, k, v = (torch.randn(sum(n), heads, width) for n in (lengths_q, lengths_k, lengths_k))
    longest = {"max_seqlen_q": max(lengths_q), "max_seqlen_k": max(lengths_k)}
    return (q, k, v), {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k} | longest


def sequence_by_sequence(q, k, v, options, scale):
    bounds_q, bounds_k = options["cu_seqlens_q"].tolist(), options["cu_seqlens_k"].tolist()
    outputs = []
    for i in range(len(bounds_q) - 1):
        rows_q, rows_k = slice(bounds_q[i], bounds_q[i + 1]), slice(bounds_k[i], bounds_k[i + 1])
        outputs.append(by_loop(q[None, rows_q], k[None, rows_k], v[None, rows_k], scale)[0])
    return torch.cat(outputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("lengths_q", "lengths_k"),
    [
        ([3, 1, 4, 3], [3, 1, 4, 3]),
        ([4, 4], [3, 3]),
        ([2, 5, 2, 5], [7, 1, 7, 2]),
        ([0, 3, 0, 2], [1, 3, 0, 2]),
        ([3, 2], [0, 4]),
        ([6], [2]),
    ],
)
def test_ragged_sequences(backend, lengths_q, lengths_k, seed):
    torch.manual_seed(seed)
    tensors, options = ragged(lengths_q, lengths_k)
    assert_agree(
        lambda *t: attention(*t, **options, backend=backend),
        lambda *t: sequence_by_sequence(*t, options, 16**-0.5),
        *tensors,
    )


@pytest.mark.parametrize("lengths", [[0, 0], []])
def test_only_empty_sequences(lengths):
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    nothing = torch.ones(0, 2, 3, requires_grad=True)
    out = attention(nothing, nothing, nothing, cu_seqlens_q=bounds, cu_seqlens_k=bounds)
    out.sum().backward()
    assert out.shape == (0, 2, 3)


def test_the_greatest_lengths_may_be_left_out(seed):
    torch.manual_seed(seed)
    tensors, options = ragged([2, 5], [4, 1])
    bounds = {name: value for name, value in options.items() if name.startswith("cu")}
    torch.testing.assert_close(attention(*tensors, **bounds), attention(*tensors, **options))


def test_half_precision_computes_its_softmax_in_float32(seed):
    torch.manual_seed(seed)
    tensors = [tensor.bfloat16() for tensor in random_tensors(1, 9, 9, 2, 4)]
    expected = by_loop(*(tensor.double() for tensor in tensors), 0.5)
    out = attention(*tensors, backend="reference")
    assert out.dtype == torch.bfloat16
    assert (out.double() - expected).norm() / expected.norm() < 4e-3, "more than the rounding of the output"


@needs_module
def test_heads_of_odd_width_go_to_torch():
    for width, backend in ((16, "cpu"), (48, "cpu"), (24, "sdpa")):
        q = torch.ones(1, 2, 3, width)
        assert OPERATION.explain(q, q, q, 1.0).backend == backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(backend, seed):
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, 16, 2, 5), torch.randn(16, 4, 3, 2), torch.randn(2, 3, 4, 32)

    def arranged(q, k, v):
        return q.permute(0, 3, 2, 1), k.permute(2, 1, 3, 0), v.permute(1, 2, 0, 3)[..., ::2]

    def call(*tensors):
        # A sum hands back a gradient whose strides are all zero.
        return attention(*arranged(*tensors), backend=backend).transpose(0, 3).sum(1)

    assert_agree(call, lambda *t: by_loop(*arranged(*t), 0.25).transpose(0, 3).sum(1), q, k, v)


@needs_module
def test_a_second_derivative_is_refused(seed):
    torch.manual_seed(seed)
    q, k, v = (tensor.requires_grad_() for tensor in random_tensors(1, 2, 2, 1, 16))
    (grad,) = torch.autograd.grad(attention(q, k, v, backend="cpu").square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_refuses_what_does_not_fit():
    q, k = torch.ones(1, 2, 3, 4), torch.ones(1, 5, 3, 4)
    bounds = torch.tensor([0, 2], dtype=torch.int32)
    with pytest.raises(ValueError, match="shapes do not fit"):
        attention(q, k, k[:, :4])
    with pytest.raises(ValueError, match="shapes do not fit"):
        attention(q, k[..., :3], k[..., :3])
    with pytest.raises(ValueError, match="cu_seqlens"):
        attention(q[0], k[0], k[0], cu_seqlens_q=bounds)
    with pytest.raises(ValueError, match="1 query and 2 key"):
        attention(q[0], k[0], k[0], cu_seqlens_q=bounds, cu_seqlens_k=torch.tensor([0, 2, 5]))


def test_the_same_bits_twice(seed):
    torch.manual_seed(seed)
    tensors = random_tensors(3, 5, 7, 2, 16)
    first, second = (outputs_and_gradients(attention, *tensors) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_cost_counts_pairs():
    dense = cost(2 * 5 * 7, 2 * 5, 2 * 7, heads=3, head_width=4)
    assert dense.flop == 4 * 2 * 3 * 5 * 7 * 4 and dense.exps == 2 * 3 * 5 * 7
    assert cost(70, 10, 14, heads=3, head_width=4, backward=True).flop == 2.5 * dense.flop
