from __future__ import annotations

import pytest
import torch

from omnitrunk.bench import plain_points
from omnitrunk.kernels import chamfer, cuda, native_points
from omnitrunk.kernels.chamfer import OPERATION, cost

from .compare import assert_agree, leaves

needs_native = pytest.mark.skipif(
    native_points.missing_reason() is not None, reason=str(native_points.missing_reason())
)
needs_gpu = pytest.mark.skipif(not cuda.available(), reason=str(cuda.missing_reason()))
BACKENDS = [pytest.param("cpu", marks=needs_native), "reference"]
NORMS = ["l2", "l1"]


def textbook(a, b, norm="l2"):
    """One pair of sets: means over the least of rows and columns of a matrix of distances."""
    distance = (a[:, None] - b[None]).pow(2).sum(-1)
    nearest = distance.amin(1), distance.amin(0)
    if norm == "l1":
        return (nearest[0].sqrt().mean() + nearest[1].sqrt().mean()) / 2
    return nearest[0].mean() + nearest[1].mean()


def normal(seed, *shape):
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("size_a", "size_b"), [(1, 1), (1, 9), (32, 32), (40, 7), (130, 65)])
def test_loss_and_gradients(backend, norm, size_a, size_b, seed):
    a, b = normal(seed, 3, size_a), normal(seed + 1, 3, size_b)
    assert_agree(
        lambda a, b: chamfer(a, b, norm=norm, backend=backend),
        lambda a, b: torch.stack([textbook(*pair, norm) for pair in zip(a, b, strict=True)]),
        a,
        b,
    )


SIZES_A, SIZES_B = (3, 1, 40, 17), (1, 25, 2, 9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("ragged", ["a", "b", "both"])
def test_ragged_sets_on_either_side(backend, norm, ragged, seed):
    sizes_a = SIZES_A if ragged != "b" else (6,) * 4
    sizes_b = SIZES_B if ragged != "a" else (5,) * 4

    def run(a, b):
        offsets = [torch.tensor([0, *sizes]).cumsum(0) for sizes in (sizes_a, sizes_b)]
        if ragged == "b":
            return chamfer(a.view(4, 6, 3), b, norm=norm, cu_seqlens_b=offsets[1].int(), backend=backend)
        if ragged == "a":
            return chamfer(a, b.view(4, 5, 3), norm=norm, cu_seqlens_a=offsets[0], backend=backend)
        return chamfer(a, b, norm=norm, cu_seqlens_a=offsets[0], cu_seqlens_b=offsets[1], backend=backend)

    def expected(a, b):
        return torch.stack([textbook(*pair, norm) for pair in zip(a.split(sizes_a), b.split(sizes_b), strict=True)])

    assert_agree(run, expected, normal(seed, sum(sizes_a)), normal(seed + 1, sum(sizes_b)))


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_the_definition(norm, seed):
    a, b = leaves(normal(seed, 2, 5).double(), normal(seed + 1, 2, 4).double())
    assert OPERATION.explain(a, b, None, None, False).backend == "reference"
    assert torch.autograd.gradcheck(lambda a, b: chamfer(a, b, norm=norm), (a, b))
    offsets = torch.tensor([0, 3, 10])

    def ragged(a, b):
        return chamfer(a.flatten(0, 1), b, norm=norm, cu_seqlens_a=offsets)

    assert torch.autograd.gradcheck(ragged, (a, b))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_lowest_index_wins_among_equals(backend):
    a = torch.zeros(1, 1, 3, requires_grad=True)
    b = torch.tensor([[[0.0, 1, 0], [1, 0, 0], [-1, 0, 0]]]).requires_grad_()
    chamfer(a, b, backend=backend).sum().backward()
    assert torch.equal(a.grad, torch.tensor([[[0.0, -2, 0]]]) - 2 / 3 * b.detach().sum(1, keepdim=True))
    torch.testing.assert_close(b.grad, b.detach() * torch.tensor([2 + 2 / 3, 2 / 3, 2 / 3])[:, None])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_derivative_at_distance_0_under_a_root(backend, seed):
    for norm, finite in [("l2", True), ("l1", False)]:
        a, b = leaves(*[normal(seed, 1, 4)] * 2)
        loss = chamfer(a, b, norm=norm, backend=backend)
        loss.sum().backward()
        assert loss == 0
        for grad in (a.grad, b.grad):
            assert grad.eq(0).all() if finite else grad.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_point_that_is_not_a_number_shows(backend, norm, seed):
    a, b = normal(seed, 4, 20), normal(seed + 1, 4, 33)
    a[0, 0, 0] = a[1, 19, 2] = b[2, 32, 1] = torch.nan
    assert chamfer(a, b, norm=norm, backend=backend).isnan().tolist() == [True, True, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(backend, dtype, seed):
    halves = leaves(normal(seed, 2, 9).to(dtype), normal(seed + 1, 2, 7))
    loss = chamfer(*halves, backend=backend)
    loss.sum().backward()
    wide = leaves(*(x.detach().float() for x in halves))
    expected = chamfer(*wide, backend=backend)
    expected.sum().backward()
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    for narrow, full in zip(halves, wide, strict=True):
        assert torch.equal(narrow.grad, full.grad.to(narrow.dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_one_side_or_none(backend, seed):
    a, b = normal(seed, 2, 9), normal(seed + 1, 9, 2).transpose(0, 1)
    direction = torch.tensor([2.0, -0.5])
    full = leaves(a, b)
    expected = chamfer(*full, backend=backend)
    expected.backward(direction)
    for side in range(2):
        pair = [a, b]
        pair[side] = pair[side].clone().requires_grad_()
        chamfer(*pair, backend=backend).backward(direction)
        assert torch.equal(pair[side].grad, full[side].grad)
    with torch.no_grad():
        loss = chamfer(*full, backend=backend)
    assert torch.equal(loss, expected) and not loss.requires_grad
    assert torch.equal(chamfer(a, b, backend=backend), expected)


@needs_native
def test_a_second_derivative_and_a_second_backward_are_refused(seed):
    a, b = leaves(normal(seed, 2, 9), normal(seed + 1, 2, 7))
    (grad,) = torch.autograd.grad(chamfer(a, b, backend="cpu").square().sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|twice"):
        grad.sum().backward()
    loss = chamfer(a, b, backend="cpu").sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_empty_batches():
    assert chamfer(torch.zeros(0, 5, 3), torch.zeros(0, 4, 3)).shape == (0,)
    empty, offsets = torch.zeros(0, 3, requires_grad=True), torch.tensor([0])
    for backend in ("auto", "reference"):
        loss = chamfer(empty, torch.zeros(0, 3), cu_seqlens_a=offsets, cu_seqlens_b=offsets, backend=backend)
        assert loss.shape == (0,) and torch.autograd.grad(loss.sum(), empty)[0].shape == (0, 3)


A, B = torch.zeros(2, 5, 3), torch.zeros(2, 4, 3)
ENDS = torch.tensor([0, 5, 5])
ERRORS = {
    "chamfer has no norm 'l3'; choose one of l2, l1": (A, B, {"norm": "l3"}),
    "chamfer takes floating points on one device, not torch.int64 on cpu and torch.float32 on cpu": (A.long(), B, {}),
    "chamfer takes floating points on one device, not torch.float32 on meta and .*: use points.to": (
        A.to("meta"), B, {},
    ),
    r"a must be \(B, N, 3\), or \(total, 3\) with cu_seqlens, not \(5, 3\)": (A[0], B, {}),
    r"b must be \(total, 3\) with cu_seqlens, not \(2, 4, 3\)": (A, B, {"cu_seqlens_b": ENDS}),
    "cu_seqlens of the b must ascend from 0 to 4, not from 0 to 5": (A, B[0], {"cu_seqlens_b": ENDS}),
    "every cloud needs its partner, but there are 2 on one side and 1 on the other": (A, B[:1], {}),
    "chamfer needs at least one point in every set: leave pairs with an empty set out": (A[:, :0], B, {}),
    "chamfer needs at least one point in every set: leave": (A[0], B, {"cu_seqlens_a": ENDS}),
    "backend 'cuda' cannot serve this call: runs on cuda, not on cpu": (A, B, {"backend": "cuda"}),
    "backend 'cpu' cannot serve this call: computes in float32, not torch.float64": (
        A.double(), B, {"backend": "cpu"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", ERRORS)
def test_errors_say_what_to_do(message):
    a, b, options = ERRORS[message]
    with pytest.raises(ValueError, match=message) as error:
        chamfer(a, b, **options)
    assert "\n" not in str(error.value)


def test_gpus_prefer_the_kernel_to_the_definition():
    assert list(OPERATION.backends) == ["cuda", "cpu"]
    assert OPERATION.choice_on("cuda").backend == ("cuda" if cuda.available() else "reference")


@needs_native
@pytest.mark.parametrize("norm", NORMS)
def test_compiles_to_one_graph(norm, seed):
    offsets = torch.tensor([0, 12, 20])

    def run(a, b, c, offsets):
        equal = chamfer(a * 2, b, norm=norm, backend="cpu")
        return equal + chamfer(c, b + 1, norm=norm, cu_seqlens_a=offsets, backend="cpu")

    compiled, results = torch.compile(run, fullgraph=True, backend="aot_eager"), []
    for call in (run, compiled):
        tensors = leaves(normal(seed, 2, 9), normal(seed + 1, 2, 7), normal(seed + 2, 20))
        loss = call(*tensors, offsets)
        loss.square().sum().backward()
        results.append([loss.detach(), *(x.grad for x in tensors)])
    for eager, got in zip(*results, strict=True):
        torch.testing.assert_close(got, eager)
    with pytest.raises(ValueError, match="a cloud has 0 points and needs 1: leave it out"):
        compiled(*tensors, torch.tensor([0, 20, 20]))
    torch.compiler.reset()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("norm", NORMS)
def test_a_gpu_gives_the_same(norm, seed):
    a, b, offsets = normal(seed, 900), normal(seed + 1, 3, 200), torch.tensor([0, 30, 310, 900])

    def run(device, backend):
        return lambda a, b: chamfer(
            a.to(device), b.to(device), norm=norm, cu_seqlens_a=offsets.to(device), backend=backend
        ).cpu()

    assert_agree(run("cuda", "cuda"), run("cpu", "reference"), a, b)
    ends = torch.tensor([0, 30, 30, 900]).cuda()
    assert chamfer(a.cuda(), b.cuda(), cu_seqlens_a=ends).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("peer", [plain_points.chamfer, plain_points.chamfer_by_cdist])
def test_peers_of_the_benchmark_compute_the_same(peer, seed):
    assert_agree(peer, lambda a, b: chamfer(a, b), normal(seed, 2, 40), normal(seed + 1, 2, 33), tolerance=1e-4)


def test_cost_is_that_of_pairs_forward_and_of_points_backward():
    assert cost(3, 10, 20).bytes == 3 * (12 * 30 + 4) and cost(3, 10, 20).flop == 3 * 8 * 200
    backward = cost(3, 10, 20, backward=True)
    assert backward.bytes == 3 * 24 * 30 and backward.flop == 3 * 12 * 30
