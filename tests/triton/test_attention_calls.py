"""Around the kernels of attention: slices of a projection, autocast, far addresses, torch.compile, what is refused."""

from __future__ import annotations

import importlib

import pytest
import torch

from omnitrunk.kernels.attention import OPERATION, attention
from omnitrunk.kernels.attention.packed import joined, unpack
from tests.triton.compare import TOLERANCE, error, outputs_and_gradients, random
from tests.triton.test_attention import SMALL, dense, ragged, run


@pytest.mark.parametrize("shape", [(2, 3, 40, 2, 16), (7, 3, 2, 48), (2, 5, 2, 2, 16)], ids=str)
def test_unpack_hands_over_slices_and_takes_them_back(seed, shape):
    projection = random(seed, *shape).requires_grad_()
    slices = unpack(projection)
    assert all(torch.equal(a, b) for a, b in zip(slices, projection.unbind(-3), strict=True))
    assert joined([x.detach() for x in slices]).data_ptr() == projection.data_ptr()
    for wrong in (slices[::-1], [slices[0], slices[0]], [x.clone() for x in slices], [x[..., :1, :] for x in slices]):
        assert joined(wrong) is None
    sum((i + 1) * x.square().sum() for i, x in enumerate(slices)).backward()
    factor = torch.arange(1, shape[-3] + 1).view(-1, 1, 1)
    torch.testing.assert_close(projection.grad, 2 * factor * projection.detach())


@pytest.mark.parametrize("tokens", [10, 40, 130])
@pytest.mark.parametrize("parts", [2, 3])
def test_gradients_of_a_projection_are_not_copied(seed, device, tokens, parts, monkeypatch):
    def call(split, backend):
        def run(q, projection):
            slices = split(projection)
            return attention(*(slices if parts == 3 else (q, *slices)), backend=backend)

        return run

    tensors = [random(seed, 2, 9, 2, 16, dtype=SMALL, device=device)]
    tensors += [random(seed + 1, 2, tokens, parts, 2, 16, dtype=SMALL, device=device)]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "stack", None)
        _, (grad_q, grad) = outputs_and_gradients(call(unpack, "triton"), tensors)
    _, truths = outputs_and_gradients(call(lambda x: x.unbind(-3), "reference"), [t.double() for t in tensors])
    assert error(grad, truths[1]) < TOLERANCE[SMALL]
    assert parts == 3 or error(grad_q, truths[0]) < TOLERANCE[SMALL]


def test_takes_the_dtype_of_autocast(seed, device):
    tensors = [t.float() for t in dense(seed, torch.float16, device, 2, 20, 20, 1, 16)]
    with torch.autocast(device.type, torch.float16):
        outputs, gradients = outputs_and_gradients(run("triton"), tensors)
    halves, expected = outputs_and_gradients(run("triton"), [t.half() for t in tensors])
    assert outputs[0].dtype == torch.float16 and torch.equal(outputs[0], halves[0])
    assert all(a.dtype == torch.float32 and torch.equal(a.half(), b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((2, 40, 1, 16), (2**31, 16, 16, 1)), ((1, 40, 2, 16), (16, 16, 2**31, 1)), ((1, 40, 1, 16), (16, 2**26, 16, 1))],
    ids=["sequences", "heads", "rows"],
)
def test_memory_two_billion_elements_apart(seed, device, shape, strides):
    # Only the pages that hold a row are ever touched.
    memory = torch.empty(2**32, dtype=torch.float16, device=device)
    near = [random(seed + i, *shape, dtype=torch.float16, device=device).requires_grad_() for i in range(3)]
    far = [memory.as_strided(shape, strides, 4096 * i).copy_(x.detach()).requires_grad_() for i, x in enumerate(near)]
    outputs = [attention(*tensors, backend="triton") for tensors in (near, far)]
    for output in outputs:
        output.square().sum().backward()
    assert torch.equal(*outputs)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(near, far, strict=True))


def test_launchers_are_sound_operators(seed, device):
    importlib.import_module("omnitrunk.kernels.attention.triton_attention")
    q, k, v = dense(seed, SMALL, device, 2, 5, 7, 1, 16)
    forward = (q, k, v, 0.25, None, None, 5, 7)
    backward = (torch.ones_like(q), *forward, 0)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.omnitrunk.tile_attention_forward.default, forward, test_utils=tests)
    torch.library.opcheck(torch.ops.omnitrunk.tile_attention_backward.default, backward, test_utils=tests)


def test_is_one_graph(seed, device):
    def call(projection):
        return attention(*unpack(projection), backend="triton").square().sum()

    gradients = []
    for run_one in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        projection = random(seed, 2, 40, 3, 2, 16, dtype=SMALL, device=device).requires_grad_()
        run_one(projection).backward()
        gradients.append(projection.grad)
    torch.testing.assert_close(*gradients)
    torch.compiler.reset()


def test_a_second_derivative_is_refused(seed, device):
    tensors = [t.requires_grad_() for t in dense(seed, SMALL, device, 1, 5, 5, 1, 16)]
    (grad,) = torch.autograd.grad(run("triton")(*tensors).square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("keys", "width", "dtype", "reason"),
    [
        (257, 16, SMALL, "up to 256 of width 16, not 257"),
        (129, 128, SMALL, "up to 128 of width 128, not 129"),
        (5, 24, SMALL, "multiple of 16, up to 128, not 24"),
        (5, 144, SMALL, "multiple of 16, up to 128, not 144"),
        (5, 16, torch.float64, "computes in float16"),
    ],
)
def test_refuses_in_one_line_what_does_not_fit(device, keys, width, dtype, reason):
    tensors = dense(0, dtype, device, 1, 3, keys, 1, width)
    with pytest.raises(ValueError, match=reason):
        attention(*tensors, backend="triton")
    assert OPERATION.explain(*tensors, 1.0).backend != "triton"


def test_is_the_first_choice(device):
    choice = OPERATION.explain(*dense(0, SMALL, device, 1, 500, 256, 1, 64), 1.0)
    assert choice.backend == "triton" and not choice.passed_over


def test_lengths_in_64_bits_are_refused(device):
    tensors, options = ragged(0, SMALL, device, [3], [3], 1, 16)
    options |= {name: options[name].long() for name in ("cu_seqlens_q", "cu_seqlens_k")}
    with pytest.raises(ValueError, match="int32"):
        attention(*tensors, **options, backend="triton")
