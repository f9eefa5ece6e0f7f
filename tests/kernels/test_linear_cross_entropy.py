from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels.linear_cross_entropy import chunked, cost, linear_cross_entropy
from omnitrunk.kernels.linear_cross_entropy import reference as definition

from .compare import assert_agree


def by_hand(x, weight, bias, target, label_smoothing, ignore_index=-100):
    logits = torch.einsum("md,cd->mc", x, weight) + (0 if bias is None else bias)
    log_softmax = logits - torch.log(torch.exp(logits).sum(1, keepdim=True))
    kept = torch.ones(len(x), dtype=torch.bool)
    if target.dim() == 1:
        kept = target != ignore_index
        target = torch.nn.functional.one_hot(target.where(kept, 0), len(weight)).to(x.dtype)
    weights = (1 - label_smoothing) * target + label_smoothing / len(weight)
    return -((weights * log_softmax).sum(1) * kept).sum() / kept.sum()


def random_problem(seed, rows, width, classes, mixed=False, dtype=torch.float32):
    """x, weight, bias and a target with ignored rows in between."""
    torch.manual_seed(seed)
    tensors = [torch.randn(shape, dtype=dtype) for shape in ((rows, width), (classes, width), (classes,))]
    if mixed:
        return tensors, torch.rand(rows, classes)
    target = torch.randint(0, classes, (rows,))
    target[torch.rand(rows) < 0.2] = -100
    target[:1] = classes - 1
    return tensors, target


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 16 rows, whatever the number of classes."""
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 1)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("mixed", [False, True], ids=["classes", "weights"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (15, 7), (16, 2), (17, 33), (50, 5)])
def test_matches_the_formula(seed, small_chunks, backend, mixed, label_smoothing, rows, classes):
    tensors, target = random_problem(seed, rows, 6, classes, mixed)
    options = {"label_smoothing": label_smoothing}
    assert_agree(
        lambda *t: linear_cross_entropy(*t, target, **options, backend=backend),
        lambda *t: by_hand(*t, target, label_smoothing),
        *tensors,
    )


def test_without_bias_strided_and_with_another_ignored_class(seed, small_chunks):
    (x, weight, _), target = random_problem(seed, 40, 8, 5)
    target = target.where(target != -100, 3)
    assert_agree(
        lambda x, w: linear_cross_entropy(x[:, ::2], w.t()[::2].t(), None, target, ignore_index=3, backend="torch"),
        lambda x, w: by_hand(x[:, ::2], w[:, ::2], None, target, 0.0, 3),
        x,
        weight,
    )


def test_in_float64_it_is_exact(seed, small_chunks):
    tensors, target = random_problem(seed, 40, 8, 5, dtype=torch.float64)
    loss = linear_cross_entropy(*tensors, target, backend="torch")
    torch.testing.assert_close(loss, by_hand(*tensors, target, 0.0), rtol=1e-12, atol=0)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *t: linear_cross_entropy(*t, target, backend="torch"), tensors)


def test_gradcheck_of_the_definition(seed):
    tensors, target = random_problem(seed, 5, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *t: definition(*t, target, 0.1), [t.requires_grad_() for t in tensors])


def test_chunks_keep_logits_small():
    for rows, classes, size in ((100_000, 8192, 2), (100, 1000, 4), (5, 10**7, 4), (0, 10, 4)):
        chunks = chunked._chunks(rows, classes, size)
        assert [i for chunk in chunks for i in (chunk.start, chunk.stop)][1:-1:2] == [c.start for c in chunks[1:]]
        assert sum(chunk.stop - chunk.start for chunk in chunks) == rows
        assert all((c.stop - c.start) * classes * size <= 20e6 or c.stop - c.start <= 16 for c in chunks)


def test_logits_of_all_rows_never_exist(seed, monkeypatch):
    (x, weight, bias), target = random_problem(seed, 200, 4, 50)
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 50 * 4 * 32)
    sizes, softmax = [], chunked.softmax_gradient
    monkeypatch.setattr(chunked, "softmax_gradient", lambda z, *rest: sizes.append(z.shape) or softmax(z, *rest))
    linear_cross_entropy(x, weight, bias, target, backend="torch")
    assert sizes == [(32, 50)] * 6 + [(8, 50)]


@pytest.mark.parametrize("scale", [1e-3, 300.0])
def test_small_and_large_logits(seed, small_chunks, scale):
    (x, weight, bias), target = random_problem(seed, 40, 8, 30)
    assert_agree(
        lambda *t: linear_cross_entropy(*t, target, label_smoothing=0.1, backend="torch"),
        lambda *t: definition(*t, target, 0.1),
        scale * x,
        weight,
        bias,
        tolerance=3e-5,
    )


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("rows", [0, 20])
def test_where_no_row_counts_the_loss_is_nan_and_gradients_are_0(backend, rows):
    tensors = [torch.randn(shape).requires_grad_() for shape in ((rows, 3), (4, 3), (4,))]
    loss = linear_cross_entropy(*tensors, torch.full((rows,), -100), label_smoothing=0.1, backend=backend)
    loss.backward()
    assert loss.isnan() and all((tensor.grad == 0).all() for tensor in tensors)


def test_only_the_gradients_asked_for(seed, small_chunks):
    (x, weight, bias), target = random_problem(seed, 40, 8, 5)
    without = linear_cross_entropy(x, weight, bias, target, backend="torch")
    weight.requires_grad_()
    loss = linear_cross_entropy(x, weight, bias, target, backend="torch")
    loss.backward()
    assert torch.equal(loss, without) and not without.requires_grad and x.grad is None and bias.grad is None
    exact = [t.detach().double() for t in (x, weight, bias)]
    exact[1].requires_grad_()
    by_hand(*exact, target, 0.0).backward()
    torch.testing.assert_close(weight.grad.double(), exact[1].grad, rtol=1e-4, atol=1e-6)


def test_backward_may_run_twice_but_not_be_differentiated(seed):
    (x, *rest), target = random_problem(seed, 10, 3, 4)
    loss = linear_cross_entropy(x.requires_grad_(), *rest, target, backend="torch")
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(loss, x, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_sum_in_float32(seed, small_chunks, dtype):
    tensors, target = random_problem(seed, 600, 8, 5)
    leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    loss = linear_cross_entropy(*leaves, target, label_smoothing=0.1, backend="torch")
    loss.backward(torch.tensor(1e-3))
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = by_hand(*exact, target, 0.1)
    expected.backward(torch.tensor(1e-3, dtype=torch.float64))
    assert loss.dtype == torch.float32
    assert abs(loss - expected) < 2 * torch.finfo(dtype).eps * expected
    for leaf, truth in zip(leaves, exact, strict=True):
        # float16 holds gradients below 6e-5 with fewer digits.
        assert leaf.grad.dtype == dtype
        floor = torch.finfo(dtype).smallest_normal * truth.numel() ** 0.5
        assert (leaf.grad.double() - truth.grad).norm() < 2 * torch.finfo(dtype).eps * (truth.grad.norm() + floor)


def test_autocast_chooses_the_dtype_of_the_products(seed):
    tensors, target = random_problem(seed, 40, 8, 5)
    losses = []
    for backend in ("torch", "reference"):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(linear_cross_entropy(*leaves, target, backend=backend))
        losses[-1].backward()
        assert losses[-1].dtype == torch.float32 and all(leaf.grad.dtype == torch.float32 for leaf in leaves)
    torch.testing.assert_close(*losses, rtol=1e-2, atol=1e-3)


def test_classes_out_of_range_are_an_error(seed):
    tensors, target = random_problem(seed, 10, 3, 4)
    for bad in (4, -1):
        target[3] = bad
        with pytest.raises((IndexError, RuntimeError)):
            linear_cross_entropy(*tensors, target, backend="torch")


def test_a_target_that_asks_for_gradients_goes_to_the_definition(seed):
    tensors, target = random_problem(seed, 10, 3, 4, mixed=True)
    linear_cross_entropy(*tensors, target.requires_grad_()).backward()
    assert target.grad is not None
    with pytest.raises(ValueError, match="gradient to the target"):
        linear_cross_entropy(*tensors, target, backend="torch")


def test_refuses_what_does_not_fit():
    x, weight, bias, target = torch.ones(5, 3), torch.ones(4, 3), torch.ones(4), torch.zeros(5, dtype=torch.int64)
    for call in ((x, weight[:, :2], bias, target), (x, weight, bias[:3], target), (x[None], weight, bias, target)):
        with pytest.raises(ValueError, match="x, weight"):
            linear_cross_entropy(*call)
    for wrong in (target[:4], target.float(), torch.zeros(5, 3), torch.zeros(5, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match="target must be"):
            linear_cross_entropy(x, weight, bias, wrong)
    with pytest.raises(ValueError, match="label_smoothing"):
        linear_cross_entropy(x, weight, bias, target, label_smoothing=1.5)


def test_cost_is_that_of_one_product_and_two():
    assert cost(10, 3, 7).flop == 2 * 10 * 3 * 7 and cost(10, 3, 7, backward=True).flop == 2 * cost(10, 3, 7).flop
    assert cost(10, 3, 7).bytes == 2 * (10 * 3 + 7 * 3) and cost(10, 3, 7).exps == 70
