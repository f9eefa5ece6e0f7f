from __future__ import annotations

import pytest
import torch

from omnitrunk.bench import plain_points
from omnitrunk.kernels import cuda, group_points, knn, native_points
from omnitrunk.kernels.knn import GROUP, OPERATION, cost

needs_native = pytest.mark.skipif(
    native_points.missing_reason() is not None, reason=str(native_points.missing_reason())
)
needs_gpu = pytest.mark.skipif(not cuda.available(), reason=str(cuda.missing_reason()))
BACKENDS = [pytest.param("cpu", marks=needs_native), "reference"]


def textbook(points, queries, k):
    """Sorted pairs of (squared distance, index), in Python's float64."""
    found = []
    for query in queries.tolist():
        distances = [sum((a - b) ** 2 for a, b in zip(point, query, strict=True)) for point in points.tolist()]
        found.append(sorted(zip(distances, range(len(distances)), strict=True))[:k])
    index = torch.tensor([[pair[1] for pair in row] for row in found], dtype=torch.int64)
    return index.reshape(-1, k), torch.tensor([[pair[0] for pair in row] for row in found]).reshape(-1, k)


def grid(seed, *shape, size=5):
    """Points with small integers as coordinates: distances are exact, and many are equal."""
    return torch.randint(-size, size, (*shape, 3), generator=torch.Generator().manual_seed(seed)).float()


def assert_same(result, expected):
    for got, truth in zip(result, expected, strict=True):
        assert got.dtype == truth.dtype and torch.equal(got, truth)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("points", "queries", "k"), [(1, 1, 1), (1, 3, 1), (20, 5, 20), (70, 9, 1), (70, 9, 33), (150, 2, 7)]
)
def test_neighbors_are_sorted_by_distance_and_index(backend, points, queries, k, seed):
    clouds, at = grid(seed, 3, points), grid(seed + 1, 3, queries)
    expected = [torch.stack(each) for each in zip(*map(textbook, clouds, at, [k] * 3), strict=True)]
    index, distance = knn(clouds, at, k, backend=backend)
    assert_same((index, distance), expected)
    neighbors = clouds.take_along_dim(index.flatten(1)[..., None], 1).view(3, queries, k, 3)
    assert torch.equal(group_points(clouds, at, k, backend=backend), neighbors - at[:, :, None])


SIZES, QUERIES = (6, 40, 9, 17), (3, 0, 7, 3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ragged", ["points", "queries", "both"])
def test_ragged_clouds_on_either_side(backend, ragged, seed):
    sizes = SIZES if ragged != "queries" else (8,) * 4
    query_sizes = QUERIES if ragged != "points" else (5,) * 4
    points, queries = grid(seed, sum(sizes)), grid(seed + 1, sum(query_sizes))
    expected = list(map(textbook, points.split(sizes), queries.split(query_sizes), [5] * 4))
    expected = [torch.cat(each) for each in zip(*expected, strict=True)]
    groups = [p[row] for p, at in zip(points.split(sizes), expected[0].split(query_sizes), strict=True) for row in at]
    groups = torch.stack(groups) - queries[:, None]
    options = {"backend": backend}
    if ragged == "queries":
        points = points.view(4, 8, 3)
    else:
        options["cu_seqlens"] = torch.tensor([0, *sizes]).cumsum(0)
    if ragged == "points":
        queries = queries.view(4, 5, 3)
    else:
        options["cu_seqlens_q"] = torch.tensor([0, *query_sizes]).cumsum(0).int()
    index, distance = knn(points, queries, 5, **options)
    assert index.shape == distance.shape == (*queries.shape[:-1], 5)
    assert_same((index.view(-1, 5), distance.view(-1, 5)), expected)
    assert torch.equal(group_points(points, queries, 5, **options).view(-1, 5, 3), groups)


@pytest.mark.parametrize("backend", BACKENDS)
def test_distances_that_are_not_numbers_come_last(backend, seed):
    points, queries = grid(seed, 1, 70), grid(seed + 1, 1, 2)
    points[0, [0, 3, 64], [0, 1, 2]] = torch.tensor([torch.nan, -torch.nan, torch.nan])
    points[0, 5] = 1e30
    index, distance = knn(points, queries, 70, backend=backend)
    assert index[0, :, -4:].tolist() == [[5, 0, 3, 64]] * 2
    assert distance[0, :, -4].isinf().all() and distance[0, :, -3:].isnan().all()
    index, distance = knn(points, torch.full((1, 1, 3), torch.nan), 70, backend=backend)
    assert index.tolist() == [[list(range(70))]] and distance.isnan().all()


def test_float64_is_served_by_the_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    points, queries = (torch.randn(1, n, 3, dtype=torch.float64, generator=generator) for n in (50, 9))
    assert OPERATION.explain(points, queries, 4, None, None).backend == "reference"
    index, distance = knn(points, queries, 4)
    expected = textbook(points[0], queries[0], 4)
    assert torch.equal(index[0], expected[0])
    torch.testing.assert_close(distance[0], expected[1].double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do_and_inputs_in_any_order_of_memory(backend, seed):
    assert knn(torch.zeros(2, 5, 3), torch.zeros(2, 0, 3), 3, backend=backend)[1].shape == (2, 0, 3)
    assert group_points(torch.zeros(0, 5, 3), torch.zeros(0, 4, 3), 3, backend=backend).shape == (0, 4, 3, 3)
    offsets = {"cu_seqlens": torch.tensor([0]), "cu_seqlens_q": torch.tensor([0])}
    assert group_points(torch.zeros(0, 3), torch.zeros(0, 3), 2, **offsets, backend=backend).shape == (0, 2, 3)
    points, queries = grid(seed, 30, 2).transpose(0, 1), grid(seed, 2, 1).expand(2, 4, 3)
    points.requires_grad_()
    results = *knn(points, queries, 3, backend=backend), group_points(points, queries, 3, backend=backend)
    points, queries = points.detach().contiguous(), queries.contiguous()
    assert_same(results, (*knn(points, queries, 3), group_points(points, queries, 3)))
    assert not results[2].requires_grad


POINTS, CENTERS = torch.zeros(2, 5, 3), torch.zeros(2, 4, 3)
ENDS = torch.tensor([0, 2, 5])
ERRORS = {
    "points must be float32 or float64.*not torch.float32 on cpu and torch.float64 on cpu: use points.to": (
        POINTS, CENTERS.double(), 1, {},
    ),
    "points must be float32 or float64.*not torch.bfloat16": (POINTS.bfloat16(), CENTERS.bfloat16(), 1, {}),
    r"queries must be \(B, N, 3\), or \(total, 3\) with cu_seqlens, not \(2, 4, 2\)": (POINTS, CENTERS[..., 1:], 1, {}),
    r"points must be \(total, 3\) with cu_seqlens, not": (POINTS, CENTERS, 1, {"cu_seqlens": ENDS}),
    r"cu_seqlens of the points must be int32 or int64 of shape \(B \+ 1,\), not torch.float32 of \(3,\)": (
        POINTS[0], CENTERS, 1, {"cu_seqlens": ENDS.float()},
    ),
    r"cu_seqlens of the queries must be int32 or int64 of shape \(B \+ 1,\), not torch.int64 of \(0,\)": (
        POINTS, CENTERS[0], 1, {"cu_seqlens_q": ENDS[:0]},
    ),
    r"cu_seqlens of the points must be .* not torch.int64 of \(1, 3\)": (
        POINTS[0], CENTERS, 1, {"cu_seqlens": ENDS[None]},
    ),
    "cu_seqlens of the points must be on cpu, not meta": (POINTS[0], CENTERS, 1, {"cu_seqlens": ENDS.to("meta")}),
    "cu_seqlens of the points must ascend from 0 to 5, not from 1 to 5": (
        POINTS[0], CENTERS, 1, {"cu_seqlens": torch.tensor([1, 2, 5])},
    ),
    "cu_seqlens of the points must ascend from 0 to 5, not from 0 to 4": (
        POINTS[0], CENTERS, 1, {"cu_seqlens": torch.tensor([0, 2, 4])},
    ),
    "cu_seqlens of the queries must ascend from 0 to 4, not from 0 to 4": (
        POINTS, CENTERS[0], 1, {"cu_seqlens_q": torch.tensor([0, 6, 4])},
    ),
    "every cloud needs its partner, but there are 2 on one side and 1 on the other": (POINTS, CENTERS[:1], 1, {}),
    "k must be 1 or more, not 0": (POINTS, CENTERS, 0, {}),
    "k = 6 neighbors need clouds of at least 6 points, and one has 5: use a smaller k": (POINTS, CENTERS, 6, {}),
    "k = 3 neighbors need clouds of at least 3 points, and one has 2": (POINTS[0], CENTERS, 3, {"cu_seqlens": ENDS}),
    "backend 'cuda' cannot serve this call: runs on cuda, not on cpu": (POINTS, CENTERS, 1, {"backend": "cuda"}),
}  # fmt: skip


@pytest.mark.parametrize("operation", [knn, group_points])
@pytest.mark.parametrize("message", ERRORS)
def test_errors_say_what_to_do(operation, message):
    points, queries, k, options = ERRORS[message]
    with pytest.raises(ValueError, match=message) as error:
        operation(points, queries, k, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("operation", [OPERATION, GROUP])
def test_gpus_prefer_the_kernel_to_the_definition_where_it_serves(operation):
    assert list(operation.backends) == ["cuda", "cpu"]
    assert operation.choice_on("cuda").backend == ("cuda" if cuda.available() else "reference")
    refuses = operation.backends["cuda"].refuses
    assert refuses(POINTS, CENTERS, 128, None, None) is None
    assert refuses(POINTS, CENTERS, 129, None, None) == "finds 128 neighbors at most, not 129"
    assert refuses(POINTS.double(), CENTERS.double(), 1, None, None) == "computes in float32, not torch.float64"
    many = torch.empty(2**31, 3, device="meta")
    for points, queries in [(many, CENTERS), (POINTS, many)]:
        assert refuses(points, queries, 1, None, None) == "takes fewer than 2^31 points"


@needs_native
def test_compiles_to_one_graph(seed):
    points, queries, offsets = grid(seed, 60), grid(seed + 1, 2, 9), torch.tensor([0, 20, 60])

    def run(points, queries, offsets):
        found = knn(points * 2, queries, 5, cu_seqlens=offsets)
        return *found, group_points(points.view(2, 30, 3), queries + 1, 7)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_same(compiled(points, queries, offsets), run(points, queries, offsets))
    with pytest.raises(ValueError, match="a cloud has 4 points and needs 5: leave it out"):
        compiled(points, queries, torch.tensor([0, 56, 60]))
    with pytest.raises(ValueError, match="cu_seqlens must ascend from 0 to the number of points, 60"):
        compiled(points, queries, torch.tensor([0, 20, 61]))
    torch.compiler.reset()


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_finds_the_same(seed):
    points, queries, offsets = grid(seed, 1500, size=20), grid(seed + 1, 3, 40), torch.tensor([0, 400, 700, 1500])
    for operation in (knn, group_points):
        expected = operation(points, queries, 33, cu_seqlens=offsets, backend="reference")
        got = operation(points.cuda(), queries.cuda(), 33, cu_seqlens=offsets.cuda(), backend="cuda")
        assert_same([x.cpu() for x in got], expected)
    index, distance = knn(points.cuda(), queries.cuda(), 100, cu_seqlens=torch.tensor([0, 60, 700, 1500]).cuda())
    assert (index[0, :, 60:] == -1).all() and distance[0, :, 60:].isposinf().all()


needs_scipy = pytest.mark.skipif(not plain_points.installed("scipy", "cpu"), reason="needs scipy")


@pytest.mark.parametrize("peer", ["nearest_neighbors", pytest.param("neighbors_by_tree", marks=needs_scipy)])
def test_peers_of_the_benchmark_find_the_same(peer, seed):
    generator = torch.Generator().manual_seed(seed)
    points, queries = (torch.rand(2, n, 3, generator=generator) for n in (300, 20))
    index, distance = getattr(plain_points, peer)(points, queries, 8)
    expected = knn(points, queries, 8)
    assert index.dtype == torch.int64 and (index == expected[0]).float().mean() > 0.98
    torch.testing.assert_close(distance, expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain_points.group_points(points, queries, 1), group_points(points, queries, 1))


def test_cost_counts_points_queries_and_results_once():
    assert cost(2, 100, 10, 4).bytes == 2 * 12 * (100 + 10 + 10 * 4)
    assert cost(2, 100, 10, 4).flop == 2 * 8 * 100 * 10
