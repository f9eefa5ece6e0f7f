from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels.layer_norm import layer_norm


def by_hand(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


@pytest.mark.parametrize("shape", [(3, 5, 8), (1, 1), (0, 4), (2, 7)])
def test_matches_the_formula_in_float64(shape, seed):
    torch.manual_seed(seed)
    x, weight, bias = torch.randn(shape) * 30, torch.randn(shape[-1]), torch.randn(shape[-1])
    expected = by_hand(x.double(), weight.double(), bias.double(), 1e-6)
    torch.testing.assert_close(layer_norm(x, weight, bias).double(), expected, rtol=1e-4, atol=1e-4)


def test_residual_layer_scale_and_drop_path(seed):
    torch.manual_seed(seed)
    x, residual = torch.randn(2, 4, 3, 6, dtype=torch.float64)
    weight, bias, scale = torch.randn(3, 6, dtype=torch.float64)
    drop = torch.tensor([0.0, 2.0, 1.0, 0.0])
    y, stream = layer_norm(x, weight, bias, residual=residual, layer_scale=scale, drop_scale=drop)
    torch.testing.assert_close(stream, residual + drop[:, None, None] * scale * x)
    torch.testing.assert_close(y, by_hand(stream, weight, bias, 1e-6))
    assert torch.equal(stream[0], residual[0]), "a dropped branch must not touch the stream"


def test_gradients(seed):
    torch.manual_seed(seed)
    x, residual = (torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias, scale = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    drop = torch.tensor([0.0, 2.0])

    def call(*tensors):
        return layer_norm(*tensors[:3], residual=tensors[3], layer_scale=tensors[4], drop_scale=drop)

    assert torch.autograd.gradcheck(call, (x, weight, bias, residual, scale))


def test_refuses_a_scale_without_residual_and_a_wrong_width():
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="residual"):
        layer_norm(x, torch.ones(4), torch.zeros(4), layer_scale=torch.ones(4))
    with pytest.raises(ValueError, match="last axis"):
        layer_norm(x, torch.ones(3), torch.zeros(3))
