"""The point-cloud kernels, to the last bit, against their definitions: random, tied and ragged inputs."""

from __future__ import annotations

import pytest
import torch

from tests.cuda import definitions

KINDS = ("random", "tied", "line")


def points_of(seed, kind, *shape):
    """Points (*shape, 3): normal, or on a coarse grid with many duplicates and equal distances, or on a line."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, 3, generator=generator)
    if kind == "tied":
        return values.mul_(2).round_()
    return values[..., :1].round(decimals=1) * torch.tensor([1.0, -2.0, 0.5]) if kind == "line" else values


def offsets_of(sizes):
    return torch.tensor([0, *sizes]).cumsum(0)


def assert_same(results, expected):
    for place, (result, truth) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(result, truth), f"result {place} differs in {(result != truth).sum()} of {truth.numel()}"


def split(values, sizes):
    return values.split(list(sizes))


# Every boundary between two kernels of farthest point sampling: (points, picks).
SAMPLED = [
    (1, 3),
    (5, 9),
    (33, 33),
    (256, 40),
    (257, 20),
    (512, 20),
    (513, 20),
    (1024, 64),
    (1025, 9),
    (2048, 9),
    (2049, 6),
]
SAMPLED += [(4096, 6), (4097, 5), (8192, 5), (8193, 4), (16384, 4), (16385, 4)]


@pytest.mark.parametrize("points, picks", SAMPLED)
@pytest.mark.parametrize("kind", KINDS)
def test_farthest_point_sample(kernels, seed, kind, points, picks):
    clouds = points_of(seed, kind, 2, points)
    start = torch.randint(0, points, (2,), generator=torch.Generator().manual_seed(seed))
    expected = [
        definitions.farthest_point_sample(*each) for each in zip(clouds, [picks] * 2, start.tolist(), strict=True)
    ]
    assert_same([kernels.farthest_point_sample(clouds, picks, None, start)], [torch.stack(expected)])


@pytest.mark.parametrize("sizes", [(1, 7, 300, 2), (3, 1100, 33), (9000, 500), (6000, 17000)], ids=str)
@pytest.mark.parametrize("pointnet2", [False, True])
def test_farthest_point_sample_of_ragged_clouds(kernels, seed, sizes, pointnet2):
    points = points_of(seed, "random", sum(sizes)) * (0.1 if pointnet2 else 1)
    index = kernels.farthest_point_sample(points, 6, offsets_of(sizes), None, pointnet2)
    expected = [definitions.farthest_point_sample(cloud, 6, 0, pointnet2) for cloud in split(points, sizes)]
    assert_same([index], [torch.stack(expected)])


def test_a_cloud_without_points_is_left_alone(kernels, seed):
    points = points_of(seed, "random", 12)
    index = kernels.farthest_point_sample(points, 4, offsets_of((5, 0, 7)))
    assert_same(index[::2], [definitions.farthest_point_sample(cloud, 4) for cloud in (points[:5], points[5:])])


def test_pointnet2_leaves_out_points_near_the_origin(kernels, seed):
    clouds = points_of(seed, "random", 3, 50) * 0.03
    clouds[1] *= 0.01  # all of them
    index = kernels.farthest_point_sample(clouds, 30, None, None, True)
    assert_same(index, [definitions.farthest_point_sample(cloud, 30, 0, True) for cloud in clouds])
    assert (index[1] == 0).all()


def test_points_that_are_not_finite_are_never_picked(kernels, seed):
    clouds = points_of(seed, "random", 2, 40)
    clouds[0, [0, 7, 39], [0, 1, 2]] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    clouds[1] *= 1e30  # squares overflow
    index = kernels.farthest_point_sample(clouds, 45)  # more than there are
    assert_same(index, [definitions.farthest_point_sample(cloud, 45) for cloud in clouds])
    assert not {7, 39} & set(index[0].tolist())


# (points, queries, k): up to 32 neighbors for every row of the sorted list, and clouds of several tiles.
SEARCHED = [
    (1, 1, 1),
    (40, 20, 32),
    (32, 17, 32),
    (1000, 9, 31),
    (1030, 16, 5),
    (2500, 5, 33),
    (64, 3, 64),
    (130, 4, 96),
]
SEARCHED += [(130, 4, 97), (1100, 4, 128)]


@pytest.mark.parametrize("points, queries, k", SEARCHED)
@pytest.mark.parametrize("kind", KINDS)
def test_nearest_neighbors(kernels, seed, kind, points, queries, k):
    clouds, at = points_of(seed, kind, 3, points), points_of(seed + 1, kind, 3, queries)
    results = kernels.nearest_neighbors(clouds, at, k)
    expected = [definitions.nearest_neighbors(*each, k) for each in zip(clouds, at, strict=True)]
    assert_same(results, [torch.stack(each) for each in zip(*expected, strict=True)])


@pytest.mark.parametrize("kind", ["random", "tied"])
def test_nearest_neighbors_of_ragged_clouds(kernels, seed, kind):
    sizes, query_sizes = (60, 40, 1500, 33, 50), (3, 0, 30, 1, 20)
    points, queries = points_of(seed, kind, sum(sizes)), points_of(seed + 1, kind, sum(query_sizes))
    results = kernels.nearest_neighbors(points, queries, 33, offsets_of(sizes), offsets_of(query_sizes))
    pairs = zip(split(points, sizes), split(queries, query_sizes), strict=True)
    expected = [definitions.nearest_neighbors(*pair, 33) for pair in pairs]
    assert_same(results, [torch.cat(each) for each in zip(*expected, strict=True)])


def test_neighbors_that_are_missing(kernels, seed):
    points, queries = points_of(seed, "random", 1, 5), points_of(seed + 1, "random", 1, 2)
    index, distance, groups = kernels.nearest_neighbors(points, queries, 8)
    expected = definitions.nearest_neighbors(points[0], queries[0], 5)
    assert_same([index[0, :, :5], distance[0, :, :5], groups[0, :, :5]], expected)
    assert (index[0, :, 5:] == -1).all() and distance[0, :, 5:].isinf().all() and groups[0, :, 5:].isnan().all()


def test_neighbors_that_are_not_numbers_come_last(kernels, seed):
    points, queries = points_of(seed, "random", 1, 70), points_of(seed + 1, "random", 1, 2)
    points[0, [0, 3, 64], [0, 1, 2]] = torch.tensor([torch.nan, -torch.nan, torch.nan])
    points[0, 5] = 1e30
    index, distance, _ = kernels.nearest_neighbors(points, queries, 70)
    assert index[0, :, -4:].tolist() == [[5, 0, 3, 64]] * 2
    assert distance[0, :, -4].isinf().all() and distance[0, :, -3:].isnan().all()


# (points of a, points of b): one warp with one or two points per lane, and tiles.
COMPARED = [(1, 1), (32, 32), (32, 20), (5, 31), (64, 64), (33, 64), (40, 7), (65, 3), (129, 300), (300, 1100)]


@pytest.mark.parametrize("size_a, size_b", COMPARED)
@pytest.mark.parametrize("kind, root", [("random", False), ("random", True), ("tied", False), ("line", False)])
def test_chamfer(kernels, seed, kind, root, size_a, size_b):
    a, b = points_of(seed, kind, 5, size_a), points_of(seed + 1, kind, 5, size_b)
    loss, *gradients = kernels.chamfer(a, b, None, None, root)
    expected_loss, *expected = (
        torch.stack(each)
        for each in zip(*(definitions.chamfer(*pair, root) for pair in zip(a, b, strict=True)), strict=True)
    )
    torch.testing.assert_close(loss, expected_loss, rtol=2e-6, atol=0)
    assert_same(gradients, expected)


@pytest.mark.parametrize("root", [False, True])
def test_chamfer_of_ragged_sets(kernels, seed, root):
    sizes_a, sizes_b = (1, 30, 200, 64, 7), (5, 40, 90, 1, 1050)
    a, b = points_of(seed, "random", sum(sizes_a)), points_of(seed + 1, "random", sum(sizes_b))
    loss, *gradients = kernels.chamfer(a, b, offsets_of(sizes_a), offsets_of(sizes_b), root)
    expected = [definitions.chamfer(*pair, root) for pair in zip(split(a, sizes_a), split(b, sizes_b), strict=True)]
    expected_loss, *expected_gradients = zip(*expected, strict=True)
    torch.testing.assert_close(loss, torch.stack(expected_loss), rtol=2e-6, atol=0)
    assert_same(gradients, [torch.cat(each) for each in expected_gradients])


@pytest.mark.parametrize("size", [20, 100])
def test_chamfer_shows_points_that_are_not_numbers(kernels, seed, size):
    a, b = points_of(seed, "random", 4, size), points_of(seed + 1, "random", 4, size)
    a[0, 0, 0] = a[1, size - 1, 2] = b[2, size // 2, 1] = torch.nan
    loss = kernels.chamfer(a, b)[0]
    assert loss.isnan().tolist() == [True, True, True, False]


def test_chamfer_of_an_empty_set_is_not_a_number(kernels, seed):
    sizes_a, sizes_b = (20, 30, 10), (25, 0, 15)
    a, b = points_of(seed, "random", sum(sizes_a)), points_of(seed + 1, "random", sum(sizes_b))
    loss = kernels.chamfer(a, b, offsets_of(sizes_a), offsets_of(sizes_b))[0]
    pairs = list(zip(split(a, sizes_a), split(b, sizes_b), strict=True))
    torch.testing.assert_close(loss[::2], torch.stack([definitions.chamfer(*pair)[0] for pair in pairs[::2]]))
    assert loss[1].isnan()


def test_nothing_to_do(kernels):
    empty, offsets = torch.zeros(0, 3), torch.tensor([0])
    assert kernels.farthest_point_sample(torch.zeros(0, 5, 3), 2).shape == (0, 2)
    assert kernels.farthest_point_sample(empty, 2, offsets).shape == (0, 2)
    assert kernels.nearest_neighbors(torch.zeros(2, 5, 3), torch.zeros(2, 0, 3), 3)[2].shape == (2, 0, 3, 3)
    assert kernels.chamfer(empty, empty, offsets, offsets)[0].shape == (0,)
