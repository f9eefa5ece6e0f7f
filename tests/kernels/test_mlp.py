from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels import mlp
from omnitrunk.kernels.linear import onednn_missing
from omnitrunk.kernels.mlp import cost

from .compare import assert_agree, poisoned

needs_onednn = pytest.mark.skipif(onednn_missing() is not None, reason=str(onednn_missing()))


def by_hand(x, w1, b1, w2, b2):
    hidden = torch.einsum("...d,fd->...f", x, w1) + b1
    active = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return torch.einsum("...f,of->...o", active, w2) + b2


def random_tensors(shape, hidden, outputs, dtype=torch.float32):
    width = shape[-1]
    shapes = (shape, (hidden, width), (hidden,), (outputs, hidden), (outputs,))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 5), (3, 11, 6), (64, 4), (2, 65, 3)])
@pytest.mark.parametrize(("hidden", "outputs"), [(7, 5), (1, 1), (24, 6)])
def test_onednn_matches_the_formula(shape, hidden, outputs, seed, monkeypatch):
    torch.manual_seed(seed)
    tensors = random_tensors(shape, hidden, outputs)
    poisoned(monkeypatch)
    assert_agree(lambda *t: mlp(*t, backend="onednn"), by_hand, *tensors, tolerance=3e-5)


@needs_onednn
def test_onednn_takes_strided_inputs(seed):
    torch.manual_seed(seed)
    x, *rest = random_tensors((5, 4, 12), 9, 12)
    assert_agree(
        lambda x, *t: mlp(x.transpose(0, 1)[::2], *t, backend="onednn"),
        lambda x, *t: by_hand(x.transpose(0, 1)[::2], *t),
        x,
        *rest,
    )


def test_the_definition_in_float64_and_on_nothing(seed):
    torch.manual_seed(seed)
    tensors = random_tensors((3, 4), 5, 4, torch.float64)
    torch.testing.assert_close(mlp(*tensors, backend="reference"), by_hand(*tensors))
    torch.testing.assert_close(mlp(*tensors), by_hand(*tensors))
    assert mlp(torch.ones(0, 4), *(tensor.float() for tensor in tensors[1:])).shape == (0, 4)


def test_gradcheck_of_the_definition(seed):
    torch.manual_seed(seed)
    tensors = [tensor.requires_grad_() for tensor in random_tensors((2, 3), 4, 2, torch.float64)]
    assert torch.autograd.gradcheck(lambda *t: mlp(*t, backend="reference"), tensors)


def test_refuses_shapes_that_do_not_fit():
    x, w1, b1, w2, b2 = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4), torch.ones(3, 4), torch.ones(3)
    with pytest.raises(ValueError, match="w1"):
        mlp(x, w1[:, :2], b1, w2, b2)
    with pytest.raises(ValueError, match="b1"):
        mlp(x, w1, b1[:3], w2, b2)
    with pytest.raises(ValueError, match="w2"):
        mlp(x, w1, b1, w2[:, :2], b2)


def test_cost_is_that_of_two_products():
    assert cost(10, 3, 12).flop == 2 * (2 * 10 * 3 * 12) and cost(10, 3, 12).exps == 120
    assert cost(10, 3, 12, backward=True).flop == 2 * cost(10, 3, 12).flop
