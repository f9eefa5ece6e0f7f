"""torch.compile over the operations: one graph without breaks, the same numbers; registered launchers as torch asks."""

from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels import native, use
from omnitrunk.models.layers.blocks import Block, CrossAttention
from tests.kernels.compare import leaves

needs_native = pytest.mark.skipif(not native.available(), reason=str(native.missing_reason()))


def block(seed):
    torch.manual_seed(seed)
    module = Block(64, 2, 4.0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


def assert_compiles(run, *tensors):
    results = []
    for call in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        inputs = leaves(*tensors)
        output = call(*inputs)
        output.square().sum().backward()
        results.append([output, *(tensor.grad for tensor in inputs)])
    for compiled, eager in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_trunk_blocks_are_one_graph(seed, backend):
    first, second = block(seed), block(seed + 1)
    tokens, drop = torch.randn(2, 9, 64), torch.tensor([0.0, 1.5])

    def run(x):
        stream, branch = first(x, None)
        stream, branch = second(stream, branch, drop_scales=(drop, drop))
        return stream + branch

    with use(backend):
        assert_compiles(run, tokens)


def test_cross_attention_is_one_graph(seed):
    torch.manual_seed(seed)
    module = CrossAttention(32, 2)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    assert_compiles(module, torch.randn(2, 5, 32), torch.randn(2, 7, 32))


@needs_native
def test_native_launchers_are_sound_operators(seed):
    torch.manual_seed(seed)
    pixels, index = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8), torch.randint(0, 8, (5,))
    cases = {
        "copy_patches": ((pixels, index, 4), {}),
        "gather_patches": ((pixels, index, 4), {"mean": [0.5] * 3, "std": [0.2] * 3}),
    }
    if hasattr(native.module(), "attention"):
        q, k, v, grad = (torch.randn(2, n, 2, 16) for n in (5, 7, 7, 5))
        cases |= {"attention": ((q, k, v, 0.25), {}), "attention_backward": ((q, k, v, grad, 0.25), {})}
    for name, (args, options) in cases.items():
        torch.library.opcheck(getattr(torch.ops.omnitrunk, name).default, args, options)


def test_a_second_derivative_is_refused(seed):
    x = torch.randn(2, 9, 64, requires_grad=True)
    stream, branch = block(seed)(x, None)
    (grad,) = torch.autograd.grad((stream + branch).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|twice"):
        grad.sum().backward()
