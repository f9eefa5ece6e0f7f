from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels.pathway_linear import Pathway, combine, combine_weights, pathway_linear
from tests.triton.compare import TOLERANCE, assert_matches, error, outputs_and_gradients, random, strided


def run(backend):
    return lambda x, weight, auxiliary, scale, bias: pathway_linear(x, weight, auxiliary, scale, bias, backend=backend)


def parts(seed, dtype, device, rows, outputs, inputs):
    shapes = ((*rows, inputs), (outputs, inputs), (outputs, inputs), (1,), (outputs,))
    return [random(seed + i, *shape, dtype=dtype, device=device) for i, shape in enumerate(shapes)]


WAYS = ("triton", "reference")


@pytest.mark.parametrize("sizes", [((1,), 16, 16), ((3, 11), 33, 47), ((65,), 130, 65)], ids=str)
def test_fused_product_matches_the_definition(seed, dtype, device, sizes):
    tensors = parts(seed, dtype, device, *sizes)
    fixed = [lambda x, w, aux, scale, bias, way=way: run(way)(x, w, aux, scale.detach(), bias) for way in WAYS]
    assert_matches(*fixed, tensors)
    # The scale's gradient is one sum of products, which may cancel: it is held against their size.
    (_, ours), (_, truth) = (
        outputs_and_gradients(run(way), [tensor.to(wide) for tensor in tensors])
        for way, wide in zip(WAYS, (dtype, torch.float64), strict=True)
    )
    size = truth[1].norm() * tensors[2].double().norm()
    assert (ours[3].double() - truth[3]).abs() < TOLERANCE[dtype] * size


def test_fused_product_on_strided_inputs(seed, device):
    tensors = [strided(tensor) for tensor in parts(seed, torch.float32, device, (9,), 17, 33)]
    assert_matches(run("triton"), run("reference"), tensors)


def test_fused_product_without_rows(device):
    x, weight = torch.zeros(0, 16, device=device), torch.ones(8, 16, device=device, requires_grad=True)
    y = pathway_linear(x, weight, weight.detach(), torch.ones(1, device=device), backend="triton")
    y.sum().backward()
    assert y.shape == (0, 8) and (weight.grad == 0).all()


@pytest.mark.parametrize("auxiliaries", [1, 2])
@pytest.mark.parametrize("sizes", [[(4, 16), (70, 33)], [(64, 64), (16, 16)]], ids=["odd", "even"])
def test_combine_matches_the_definition(seed, dtype, device, auxiliaries, sizes):
    pathways = []
    for i, shape in enumerate(sizes):
        weights = [random(seed + 9 * i + j, *shape, dtype=dtype, device=device) for j in range(1 + auxiliaries)]
        scales = tuple(random(seed + 90 * i + j, 1, device=device) for j in range(auxiliaries))
        pathways.append(Pathway(weights[0], tuple(weights[1:]), scales))
    for _ in range(2):
        results = combine_weights(pathways, torch.float16, backend="triton")
        expected = [torch.empty(p.weight.shape, dtype=torch.float64) for p in pathways]
        combine.reference(pathways, expected)
        assert max(map(error, results, expected)) < TOLERANCE[torch.float16]
        pathways[0].scales[0].add_(1)
