from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.bench import plain_points
from omnitrunk.kernels import cuda, farthest_point_sample, native_points
from omnitrunk.kernels.farthest_point_sample import OPERATION, cost

needs_native = pytest.mark.skipif(
    native_points.missing_reason() is not None, reason=str(native_points.missing_reason())
)
needs_gpu = pytest.mark.skipif(not cuda.available(), reason=str(cuda.missing_reason()))
BACKENDS = [pytest.param("cpu", marks=needs_native), "reference"]


def textbook(points, count, start=0, candidates=None):
    """The pick is the candidate farthest from all picks, in float64; distances are computed anew every time."""
    points = points.double().numpy()
    candidates = range(len(points)) if candidates is None else candidates
    picks = [start]
    while len(picks) < count:
        squared = [min(np.square(points[n] - points[pick]).sum() for pick in picks) for n in candidates]
        picks.append(candidates[int(np.argmax(squared))])
    return picks[:count]


def grid(seed, *shape, size=5):
    """Points with small integers as coordinates: distances are exact, many equal, and some points duplicates."""
    return torch.randint(-size, size, (*shape, 3), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("points", "count"), [(1, 1), (1, 3), (2, 2), (17, 17), (40, 12), (65, 20)])
def test_every_pick_is_the_farthest(backend, points, count, seed):
    clouds = grid(seed, 3, points)
    start = torch.randint(0, points, (3,), generator=torch.Generator().manual_seed(seed))
    expected = [textbook(*pair) for pair in zip(clouds, [count] * 3, start.tolist(), strict=True)]
    assert farthest_point_sample(clouds, count, start=start, backend=backend).tolist() == expected
    expected = [textbook(cloud, count) for cloud in clouds]
    assert farthest_point_sample(clouds, count, backend=backend).tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ragged_clouds(backend, dtype, seed):
    sizes = (1, 30, 2, 17)
    points, offsets = grid(seed, sum(sizes)), torch.tensor([0, 1, 31, 33, 50], dtype=dtype)
    start = torch.tensor([0, 29, 1, 5])
    expected = [textbook(*call) for call in zip(points.split(sizes), [7] * 4, start.tolist(), strict=True)]
    assert farthest_point_sample(points, 7, cu_seqlens=offsets, start=start, backend=backend).tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_duplicates_come_after_everything_else_and_then_index_0(backend):
    cloud = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [4, 0, 0]])
    assert farthest_point_sample(cloud[None], 6, start=torch.tensor([1]), backend=backend).tolist() == [
        [1, 4, 0, 0, 0, 0]
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_that_are_not_finite_are_picked_as_the_start_only(backend, seed):
    clouds = grid(seed, 3, 20)
    clouds[0, [2, 7, 19], [0, 1, 2]] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    clouds[1, 0, 1] = torch.nan
    clouds[2] = torch.inf
    index = farthest_point_sample(clouds, 25, backend=backend)
    rest = [n for n in range(20) if n not in (2, 7, 19)]
    assert index[0].tolist() == textbook(clouds[0], 25, 0, rest)
    # The start is no pick that others are far from: index 1 is infinitely far, and the first.
    assert index[1].tolist() == [0, *textbook(clouds[1], 24, 1, range(1, 20))]
    assert index[2].tolist() == [0] * 25


@pytest.mark.parametrize("backend", BACKENDS)
def test_pointnet2_leaves_points_near_the_origin_out(backend, seed):
    clouds = grid(seed, 3, 40, size=4) * 2**-6  # squared norms are multiples of 2^-12, some of them below 1e-3
    clouds[0, 3] = 0
    clouds[1] *= 2**-6  # all of them
    for cloud, index in zip(clouds, farthest_point_sample(clouds, 15, pointnet2=True, backend=backend), strict=True):
        far = [n for n in range(40) if cloud[n].double().square().sum() > 1e-3]
        assert index.tolist() == (textbook(cloud, 15, 0, far) if far else [0] * 15)


def test_float64_is_served_by_the_definition(seed):
    clouds = torch.randn(2, 30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    choice = OPERATION.explain(clouds, 5, None, None, False)
    assert choice.backend == "reference" and ("cpu", "computes in float32, not torch.float64") in choice.passed_over
    assert farthest_point_sample(clouds, 9).tolist() == [textbook(cloud, 9) for cloud in clouds]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do_and_inputs_in_any_order_of_memory(backend, seed):
    assert farthest_point_sample(torch.zeros(0, 5, 3), 2, backend=backend).shape == (0, 2)
    empty = farthest_point_sample(torch.zeros(0, 3), 2, cu_seqlens=torch.tensor([0]), backend=backend)
    assert empty.shape == (0, 2) and empty.dtype == torch.int64
    points = torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    assert farthest_point_sample(points.transpose(0, 2), 0, backend=backend).shape == (2, 0)
    turned = farthest_point_sample(points.transpose(0, 2), 8, backend=backend)
    assert torch.equal(turned, farthest_point_sample(points.detach().transpose(0, 2).contiguous(), 8))


CLOUDS = torch.zeros(2, 5, 3)
ERRORS = {
    "points must be float32 or float64, all alike and on one device, not torch.int64 on cpu": (CLOUDS.long(), 1, {}),
    "points must be float32 or float64, all alike and on one device, not torch.float16 on cpu": (CLOUDS.half(), 1, {}),
    r"points must be \(B, N, 3\), or \(total, 3\) with cu_seqlens, not \(2, 5\)": (CLOUDS[..., 0], 1, {}),
    r"points must be \(total, 3\) with cu_seqlens, not \(2, 5, 3\)": (CLOUDS, 1, {"cu_seqlens": torch.tensor([0, 5])}),
    "count must be 0 or more, not -1": (CLOUDS, -1, {}),
    "needs at least one point in every cloud: leave empty clouds out": (CLOUDS[:, :0], 1, {}),
    "needs at least one point in every cloud": (CLOUDS[0], 1, {"cu_seqlens": torch.tensor([0, 2, 2, 5])}),
    "pointnet2 always starts at index 0: leave start out": (
        CLOUDS, 1, {"start": torch.tensor([0, 0]), "pointnet2": True},
    ),
    r"start must be int64 of shape \(2,\) on cpu, not torch.int32 of \(2,\)": (
        CLOUDS, 1, {"start": torch.tensor([0, 0]).int()},
    ),
    r"start must be int64 of shape \(2,\) on cpu, not torch.int64 of \(1,\)": (CLOUDS, 1, {"start": torch.tensor([0])}),
    "start must hold an index of every cloud": (CLOUDS, 1, {"start": torch.tensor([0, 5])}),
    "0 or more and less than its number of points": (CLOUDS, 1, {"start": torch.tensor([-1, 0])}),
    "start must hold an index of every cloud, 0 or more": (
        CLOUDS[0], 1, {"start": torch.tensor([1, 3]), "cu_seqlens": torch.tensor([0, 2, 5])},
    ),
    "backend 'cuda' cannot serve this call: runs on cuda, not on cpu": (CLOUDS, 1, {"backend": "cuda"}),
}  # fmt: skip


@pytest.mark.parametrize("message", ERRORS)
def test_errors_say_what_to_do(message):
    points, count, options = ERRORS[message]
    with pytest.raises(ValueError, match=message) as error:
        farthest_point_sample(points, count, **options)
    assert "\n" not in str(error.value)


def test_gpus_prefer_the_kernel_to_the_definition():
    assert list(OPERATION.backends) == ["cuda", "cpu"]
    choice = OPERATION.choice_on("cuda")
    assert choice.backend == ("cuda" if cuda.available() else "reference")


@needs_native
def test_compiles_to_one_graph(seed):
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(seed))
    offsets, start = torch.tensor([0, 20, 60]), torch.tensor([3, 39])

    def run(points, offsets, start):
        equal = farthest_point_sample(points.view(2, 30, 3) * 2, 5, pointnet2=True)
        return equal, farthest_point_sample(points * 2, 6, cu_seqlens=offsets, start=start)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for expected, got in zip(run(points, offsets, start), compiled(points, offsets, start), strict=True):
        assert torch.equal(expected, got)
    with pytest.raises(ValueError, match="start must hold an index of every cloud, not 40"):
        compiled(points, offsets, start + 1)
    torch.compiler.reset()


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_picks_the_same(seed):
    points = torch.randn(3, 1500, generator=torch.Generator().manual_seed(seed)).T
    offsets, start = torch.tensor([0, 400, 700, 1500]), torch.tensor([7, 0, 799])
    for cloud, options in [
        (points, {"cu_seqlens": offsets, "start": start}),
        (points.reshape(3, 500, 3), {"pointnet2": True}),
    ]:
        moved = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
        got = farthest_point_sample(cloud.cuda(), 40, **moved, backend="cuda")
        assert torch.equal(got.cpu(), farthest_point_sample(cloud, 40, **options, backend="reference"))


needs_fpsample = pytest.mark.skipif(not plain_points.installed("fpsample", "cpu"), reason="needs fpsample")
PEERS = [
    "farthest_point_sample",
    *(pytest.param(f"farthest_by_{x}", marks=needs_fpsample) for x in ("scan", "buckets")),
]


@pytest.mark.parametrize("peer", PEERS)
def test_peers_of_the_benchmark_pick_the_same(peer, seed):
    points = grid(seed, 2, 300, size=1000)
    index = getattr(plain_points, peer)(points, 20)
    assert torch.equal(index, farthest_point_sample(points, 20, start=index[:, 0].contiguous()))


def test_cost_counts_the_cloud_once():
    assert cost(2, 100, 10).bytes == 2 * (100 * 12 + 10 * 8)
    assert cost(2, 100, 10).flop == 2 * 9 * 100 * 10
    assert cost(2, 100, 0).flop == 0
