"""What only a GPU shows: streams, graphs, sizes as they are in training."""

from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels import cuda
from tests.cuda import definitions
from tests.cuda.test_kernels import assert_same, offsets_of, points_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cuda.available(), reason=f"the CUDA kernels cannot run: {cuda.missing_reason()}"),
]


def everything(points, others, offsets):
    """All kernels: of equal and of ragged clouds, small sets and large ones."""
    flat, ragged = points.view(-1, 3), others.view(-1, 3)
    return [
        cuda.cuda_farthest_point_sample(points, 16, None, None, False),
        cuda.cuda_farthest_point_sample(flat, 16, offsets, None, False),
        *cuda.cuda_nearest_neighbors(points, others, 20, None, None),
        cuda.cuda_group_points(flat, ragged, 20, offsets, offsets),
        *cuda.cuda_chamfer(points[:, :30].contiguous(), others[:, :30].contiguous(), None, None, False, True),
        *cuda.cuda_chamfer(flat, ragged, offsets, offsets, True, True),
    ]


@pytest.fixture
def inputs(seed):
    offsets = offsets_of((100, 60, 240)).cuda()
    return *(points_of(seed + i, "random", 4, 100).cuda() for i in range(2)), offsets


def test_in_a_cuda_graph(seed, inputs):
    everything(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything(*inputs)
    inputs[0].copy_(points_of(seed + 2, "random", 4, 100))
    graph.replay()
    assert_same(captured, everything(*inputs))


def test_on_another_stream(inputs):
    expected = everything(*inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = everything(*inputs)
    stream.synchronize()
    assert_same(results, expected)


def test_without_gradients(inputs):
    with_gradients = cuda.cuda_chamfer(*inputs[:2], None, None, False, True)
    assert_same(cuda.cuda_chamfer(*inputs[:2], None, None, False, False)[:1], with_gradients[:1])


@pytest.mark.parametrize("clouds, points, picks", [(128, 1024, 64), (32, 8192, 512)])
def test_sampling_and_grouping_for_training(seed, clouds, points, picks):
    cloud = points_of(seed, "random", clouds, points)
    index = cuda.cuda_farthest_point_sample(cloud.cuda(), picks, None, None, False)
    centers = cloud.cuda().gather(1, index[..., None].expand(-1, -1, 3))
    groups = cuda.cuda_group_points(cloud.cuda(), centers, 32, None, None)
    for place in (0, clouds // 2, clouds - 1):
        expected = definitions.farthest_point_sample(cloud[place], picks)
        neighbors = definitions.nearest_neighbors(cloud[place], cloud[place][expected], 32)[2]
        assert_same([index[place].cpu(), groups[place].cpu()], [expected, neighbors])


@pytest.mark.parametrize("sets, size", [(4864, 32), (8, 2048)])
def test_chamfer_for_training(seed, sets, size):
    a, b = (points_of(seed + i, "random", sets, size) for i in range(2))
    _, grad_a, grad_b = cuda.cuda_chamfer(a.cuda(), b.cuda(), None, None, False, True)
    for place in (0, sets - 1):
        assert_same([grad_a[place].cpu(), grad_b[place].cpu()], definitions.chamfer(a[place], b[place])[1:])
