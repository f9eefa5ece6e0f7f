from __future__ import annotations

import gc

import pytest
import torch

from omnitrunk.kernels.dispatch import Choice
from omnitrunk.kernels.pathway_linear import OPERATION, Pathway, combine, combine_weights, pathway_linear, reference
from tests.kernels.compare import assert_agree


def parts(seed, auxiliaries=1, outputs=12, inputs=20, rows=(3, 7), dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(*rows, inputs), (outputs,), *[(outputs, inputs)] * (1 + auxiliaries), *[(1,)] * auxiliaries]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def call(backend, auxiliaries, paired=False):
    def run(x, bias, weight, *others):
        return pathway_linear(
            x, weight, others[:auxiliaries], others[auxiliaries:], bias, paired=paired, backend=backend
        )

    return run


@pytest.mark.parametrize("auxiliaries", [1, 3])
def test_cached_matches_the_definition(seed, auxiliaries):
    assert_agree(call("cached", auxiliaries), call("reference", auxiliaries), *parts(seed, auxiliaries))


def test_definition_passes_gradcheck(seed):
    tensors = [tensor.requires_grad_() for tensor in parts(seed, 2, 3, 4, (2,), torch.float64)]
    assert torch.autograd.gradcheck(call("reference", 2), tensors)


def test_starts_at_zero_with_a_gradient_for_the_scale(seed):
    x, bias, weight, auxiliary, scale = parts(seed)
    leaves = [weight.requires_grad_(), auxiliary.requires_grad_(), scale.zero_().requires_grad_()]
    y = pathway_linear(x, *leaves, bias)
    torch.testing.assert_close(y, torch.nn.functional.linear(x, weight, bias), rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    assert (auxiliary.grad == 0).all() and scale.grad.abs() > 0 and weight.grad.abs().sum() > 0


def test_paired_leaves_the_rest_to_the_optimizer(seed):
    for backend in ("cached", "reference"):
        x, bias, *leaves = (tensor.requires_grad_() for tensor in parts(seed))
        pathway_linear(x, *leaves, bias, paired=True, backend=backend).sum().backward()
        assert leaves[0].grad is not None and leaves[1].grad is None and leaves[2].grad is None


@pytest.mark.parametrize("changed", range(3), ids=["weight", "auxiliary", "scale"])
@pytest.mark.parametrize("how", ["in place", "copy", "moved", "optimizer"])
def test_no_change_is_missed(seed, changed, how):
    x, bias, *leaves = parts(seed)
    pathway = Pathway(leaves[0], (leaves[1],), (leaves[2],))
    before = pathway_linear(x, *leaves, bias, backend="cached")
    with torch.no_grad():
        if how == "in place":
            leaves[changed] += 1
        elif how == "copy":
            leaves[changed].copy_(leaves[changed] * 3 + 1)
        elif how == "moved":
            leaves[changed].data = leaves[changed].data * 3 + 1
        else:
            parameter = leaves[changed].requires_grad_()
            parameter.grad = torch.ones_like(parameter)
            torch.optim.SGD([parameter], 0.5).step()
    after = pathway_linear(x, *leaves, bias, backend="cached")
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, reference(x, pathway, bias), rtol=1e-5, atol=1e-5)


def test_combines_once(seed, monkeypatch):
    runs = []

    def count(_backend, chosen, results):
        runs.append(len(chosen))
        combine.reference(chosen, results)

    monkeypatch.setattr(combine.OPERATION, "run", count)
    layers = [parts(seed + i) for i in range(3)]
    combine_weights([Pathway(weight, (auxiliary,), (scale,)) for *_, weight, auxiliary, scale in layers])
    for x, bias, weight, auxiliary, scale in layers * 2:
        pathway_linear(x, weight, auxiliary, scale, bias, backend="cached")
    assert runs == [3]
    layers[1][-1].add_(1)
    combine_weights([Pathway(weight, (auxiliary,), (scale,)) for *_, weight, auxiliary, scale in layers])
    assert runs == [3, 1]


def test_a_write_between_forward_and_backward_is_refused(seed):
    x, bias, weight, auxiliary, scale = (tensor.requires_grad_() for tensor in parts(seed))
    y = pathway_linear(x, weight, auxiliary, scale, bias, backend="cached")
    with torch.no_grad():
        weight.add_(1)
    pathway_linear(x, weight, auxiliary, scale, bias, backend="cached")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_combined_weight_is_rounded_once(seed):
    *_, weight, auxiliary, scale = parts(seed, outputs=64, inputs=64)
    (result,) = combine_weights([Pathway(weight, (auxiliary,), (scale,))], torch.bfloat16)
    exact = weight.double() + scale.double() * auxiliary.double()
    assert torch.equal(result, exact.float().bfloat16())


def test_what_is_kept_goes_with_its_weight(seed):
    gc.collect()
    kept = len(combine._kept)
    *_, weight, auxiliary, scale = parts(seed)
    combine_weights([Pathway(weight, (auxiliary,), (scale,))])
    assert len(combine._kept) == kept + 1
    del weight
    gc.collect()
    assert len(combine._kept) == kept


def test_auto_takes_the_cache_on_a_cpu(seed):
    x, bias, weight, auxiliary, scale = parts(seed)
    choice = OPERATION.explain(x, Pathway(weight, (auxiliary,), (scale,)), bias)
    assert isinstance(choice, Choice) and choice.backend == "cached"


def test_shapes_are_checked(seed):
    x, bias, weight, auxiliary, scale = parts(seed)
    for wrong in ((weight, auxiliary[:3], scale), (weight, auxiliary, scale.repeat(2)), (weight, [auxiliary], [])):
        with pytest.raises(ValueError, match="pathway"):
            pathway_linear(x, *wrong, bias)
    with pytest.raises(ValueError, match="does not match"):
        pathway_linear(x[..., :3], weight, auxiliary, scale)
