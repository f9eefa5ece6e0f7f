"""Every operation under autocast behaves as torch's own counterpart: dtype of the result, its error, the gradients.

Activations come in float32, and in bfloat16 as a layer before left them; parameters are float32 and so are gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch.nn import functional

import omnitrunk.kernels as kernels
from omnitrunk.kernels.dispatch import OPERATIONS
from omnitrunk.kernels.pathway_linear import Pathway
from tests.kernels.compare import leaves

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]
BATCH, TOKENS, WIDTH, HEADS = 2, 24, 64, 4
ROWS = BATCH * TOKENS
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@dataclass
class Case:
    """ours and torch's on tensors of the given shapes; the first `activations` of them may come in bfloat16."""

    ours: object
    torch: object
    shapes: list
    activations: int = 1
    integers: dict = field(default_factory=dict)


def index_of(count, size, device):
    return torch.randperm(size, generator=torch.Generator().manual_seed(1))[:count].to(device)


def pixels(device):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (BATCH, 16, 24, 3), generator=generator, dtype=torch.uint8).to(device)


def patches(device, index, dtype):
    tiles = pixels(device).unflatten(2, (6, 4)).unflatten(1, (4, 4)).transpose(2, 3)
    rows = (tiles.double() / 255 - torch.tensor(MEAN, device=device)) / torch.tensor(STD, device=device)
    return rows.reshape(ROWS, 48)[index].to(dtype)


def torch_attention(q, k, v):
    mixed = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return mixed.transpose(1, 2)


def torch_scatter(rows, fill, table, index):
    base = (fill + table).repeat(BATCH, 1).to(rows.dtype)
    return base.index_copy(0, index, rows)


def ours_norm_of_sum(x, residual, weight, bias, scale):
    return kernels.layer_norm(x, weight, bias, residual=residual, layer_scale=scale)


def torch_norm_of_sum(x, residual, weight, bias, scale):
    stream = residual + x * scale
    return functional.layer_norm(stream, (WIDTH,), weight, bias, 1e-6), stream


def ours_project(weight, bias, position):
    index = index_of(20, ROWS, weight.device)
    return kernels.patch_project(
        pixels(weight.device), weight, bias, index, patch=4, position=position, mean=MEAN, std=STD
    )


def torch_project(weight, bias, position):
    index = index_of(20, ROWS, weight.device)
    return functional.linear(patches(weight.device, index, weight.dtype), weight, bias) + position[index % TOKENS]


def ours_masked(pred):
    index = index_of(20, ROWS, pred.device)
    weight = torch.full((20,), 1 / 20, device=pred.device)
    return kernels.masked_patch_loss(pred, pixels(pred.device), index, weight, patch=4, loss="mse", mean=MEAN, std=STD)


def torch_masked(pred):
    target = patches(pred.device, index_of(20, ROWS, pred.device), torch.float64)
    return functional.mse_loss(pred if pred.dtype == torch.float64 else pred.float(), target.to(pred.dtype))


def classes(device):
    return torch.arange(ROWS, device=device) % 9


def ours_window(qkv, table):
    return kernels.window_attention(qkv.view(1, 2, 4, 6, 3, HEADS, 16), table, window=(2, 2, 3))


def torch_window(qkv, table):
    """One window of a map that is cut into four by 2 along the height and 2 along the width."""
    coordinates = torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3))
    apart = coordinates[:, None] - coordinates + torch.tensor([1, 1, 2])
    bias = table[(apart[..., 0] * 3 + apart[..., 1]) * 5 + apart[..., 2]].permute(2, 0, 1)
    x = qkv.view(2, 2, 2, 2, 3, 3, HEADS, 16).permute(1, 3, 0, 2, 4, 5, 6, 7).reshape(4, 12, 3, HEADS, 16)
    q, k, v = x.permute(2, 0, 3, 1, 4)
    narrow = torch.is_autocast_enabled(qkv.device.type)
    dtype = torch.get_autocast_dtype(qkv.device.type) if narrow else qkv.dtype
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(dtype)).transpose(1, 2)
    mixed = mixed.reshape(2, 2, 2, 2, 3, HEADS, 16).permute(2, 0, 3, 1, 4, 5, 6)
    return mixed.reshape(1, 2, 4, 6, HEADS, 16)


CASES = {
    "linear": Case(kernels.linear, functional.linear, [(ROWS, WIDTH), (96, WIDTH), (96,)]),
    "mlp": Case(
        kernels.mlp,
        lambda x, w1, b1, w2, b2: functional.linear(functional.gelu(functional.linear(x, w1, b1)), w2, b2),
        [(ROWS, WIDTH), (96, WIDTH), (96,), (WIDTH, 96), (WIDTH,)],
    ),
    "attention": Case(kernels.attention, torch_attention, [(BATCH, TOKENS, HEADS, 16)] * 3, activations=3),
    "layer_norm": Case(
        kernels.layer_norm,
        lambda x, weight, bias: functional.layer_norm(x, (WIDTH,), weight, bias, 1e-6),
        [(ROWS, WIDTH), (WIDTH,), (WIDTH,)],
    ),
    "layer_norm of a sum": Case(
        ours_norm_of_sum, torch_norm_of_sum, [(ROWS, WIDTH), (ROWS, WIDTH), *[(WIDTH,)] * 3], activations=2
    ),
    "linear_cross_entropy": Case(
        lambda x, weight, bias: kernels.linear_cross_entropy(x, weight, bias, classes(x.device)),
        lambda x, weight, bias: functional.cross_entropy(functional.linear(x, weight, bias), classes(x.device)),
        [(ROWS, WIDTH), (9, WIDTH), (9,)],
    ),
    "gather_tokens": Case(
        lambda x: kernels.gather_tokens(x, index_of(20, ROWS, x.device)),
        lambda x: x[index_of(20, ROWS, x.device)],
        [(ROWS, WIDTH)],
    ),
    "scatter_tokens": Case(
        lambda x, fill, table: kernels.scatter_tokens(
            x, index_of(20, ROWS, x.device), ROWS, fill=fill, table=table
        ),
        lambda x, fill, table: torch_scatter(x, fill, table, index_of(20, ROWS, x.device)),
        [(20, WIDTH), (WIDTH,), (TOKENS, WIDTH)],
    ),
    "patch_project": Case(ours_project, torch_project, [(WIDTH, 48), (WIDTH,), (TOKENS, WIDTH)], activations=0),
    "masked_patch_loss": Case(ours_masked, torch_masked, [(20, 48)]),
    "pathway_linear": Case(
        lambda x, weight, other, scale, bias: kernels.pathway_linear(x, weight, other, scale, bias),
        lambda x, weight, other, scale, bias: functional.linear(x, weight + scale * other, bias),
        [(ROWS, WIDTH), (96, WIDTH), (96, WIDTH), (1,), (96,)],
    ),
    "window_attention": Case(ours_window, torch_window, [(1, 2, 4, 6, 3 * HEADS * 16), (45, HEADS)]),
    "chamfer": Case(
        lambda a, b: kernels.chamfer(a, b).mean(),
        lambda a, b: (lambda d: (d.min(1).values.mean() + d.min(2).values.mean()))(
            (a[:, :, None] - b[:, None]).square().sum(-1)
        ),
        [(2, 30, 3), (2, 40, 3)],
        activations=0,
    ),
}  # fmt: skip
WITHOUT_GRADIENT = {"adamw_", "combine_weights", "copy_patches", "farthest_point_sample", "gather_patches",
                    "group_points", "knn", "sample_mask"}  # fmt: skip


def results(call, tensors, device, *, autocast):
    """Outputs and gradients of the given leaves."""
    inputs = leaves(*tensors)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        outputs = call(*inputs)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    for place, output in enumerate(outputs):
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(place), dtype=torch.float64)
        output.backward(direction.to(output), retain_graph=True)
    return outputs, [x.grad for x in inputs]


def off(result, truth):
    return ((result.double() - truth).norm() / (truth.norm() + 1e-3)).item()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def given(request):
    return request.param


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_operations_follow_their_counterparts(name, backend, given, device, seed):
    case, generator = CASES[name], torch.Generator().manual_seed(seed)
    if given == torch.bfloat16 and not case.activations:
        pytest.skip("takes no activations")
    scales = [0.3 if place >= case.activations else 1.0 for place in range(len(case.shapes))]
    tensors = [
        scale * torch.randn(shape, generator=generator) for scale, shape in zip(scales, case.shapes, strict=True)
    ]
    tensors = [x.to(given if place < case.activations else x.dtype).to(device) for place, x in enumerate(tensors)]
    truth, true_gradients = results(case.torch, [x.double() for x in tensors], device, autocast=False)
    theirs, their_gradients = results(case.torch, tensors, device, autocast=True)
    with kernels.use(backend):
        ours, our_gradients = results(case.ours, tensors, device, autocast=True)
    # A definition, written out in small operations, may keep more precision than the fused counterpart.
    wider = [torch.promote_types(x.dtype, y.dtype) if backend == "reference" else y.dtype
             for x, y in zip(ours, theirs, strict=True)]  # fmt: skip
    assert [x.dtype for x in ours] == wider
    assert [x.dtype for x in our_gradients] == [x.dtype for x in tensors]
    triples = zip([*ours, *our_gradients], [*theirs, *their_gradients], [*truth, *true_gradients], strict=True)
    for place, (result, peer, exact) in enumerate(triples):
        assert result.isfinite().all(), place
        assert off(result, exact) <= 2 * off(peer, exact) + 1e-3, f"{place}: {off(result, exact)}, {off(peer, exact)}"


@pytest.mark.parametrize("device", DEVICES)
def test_operations_without_gradients_do_not_change(device, seed):
    def run():
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(2, 50, 3, generator=generator).to(device)
        counts = torch.tensor([[3, 2], [0, 5]], dtype=torch.int32, device=device)
        param, grad, m, v = (torch.rand(8, 8, generator=generator).to(device) for _ in range(4))
        step = torch.zeros((), device=device)
        norm, _ = kernels.adamw_(
            [param], [grad], [m], [v], step, lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, max_norm=1.0
        )
        pathway = Pathway(param, (grad,), (v[0, :1],))
        return [
            *kernels.sample_mask(counts, (6, 6), 5, seed=3, positions=torch.arange(2, device=device)),
            kernels.farthest_point_sample(points, 7),
            *kernels.knn(points, points[:, :5], 4),
            kernels.group_points(points, points[:, :5], 4),
            *(param, m, v, step, norm),
            *kernels.combine_weights([pathway]),
        ]

    expected = run()
    with torch.autocast(device, torch.bfloat16):
        got = run()
    for place, (result, truth) in enumerate(zip(got, expected, strict=True)):
        assert result.dtype == truth.dtype and torch.equal(result, truth), place


def test_no_operation_is_forgotten():
    assert set(OPERATIONS) == {name.split(" ")[0] for name in CASES} | WITHOUT_GRADIENT
