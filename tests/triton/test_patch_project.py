from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from omnitrunk.kernels import patch_project
from omnitrunk.kernels.patch_project import OPERATION
from omnitrunk.kernels.patch_project.triton_fold import centered, fold
from omnitrunk.kernels.patch_project.triton_positions import sum_by_position
from omnitrunk.kernels.patches import affine
from tests.triton.compare import TOLERANCE, assert_matches, error, outputs_and_gradients, random
from tests.triton.test_patches import grid, numbers

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BACKENDS = ["triton", "triton_gather"]
SHAPES = [
    ((2, 32, 16, 3), 16, 48),
    ((2, 14, 28, 3), 14, 33),
    ((3, 14, 7, 1), 7, 20),
    ((2, 16, 24, 3), (8, 6), 130),
    ((2, 4, 16, 32, 3), (2, 8, 16), 17),
]


def problem(seed, device, shape, patch, width, count, *, dtype, scale=0.1, bytewise=True):
    """Pixels, index, and weight, bias and position of `dtype`."""
    pixels = numbers(seed, 256, shape, device).to(torch.uint8) if bytewise else random(seed, *shape, device=device)
    cells = grid(shape, patch)
    values = pixels[0].numel() // cells
    index = numbers(seed + 1, shape[0] * cells, (count,), device)
    shapes = (width, values), (width,), (cells, width)
    tensors = [random(seed + 2 + i, *s, dtype=dtype, device=device, scale=scale) for i, s in enumerate(shapes)]
    return pixels, index, tensors


def calls(pixels, index, patch, backend, normalized=True):
    """The operation through `backend` and by its definition, as functions of weight, bias and position."""
    channels = pixels.shape[-1]
    options = {"patch": patch} | ({"mean": MEAN[:channels], "std": STD[:channels]} if normalized else {})

    def through(name):
        return lambda w, b, p: patch_project(pixels, w, b, index, position=p, backend=name, **options)

    return through(backend), through("reference")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "patch", "width"), SHAPES)
@pytest.mark.parametrize("bytewise", [True, False], ids=["bytes", "floats"])
def test_matches_the_definition(seed, dtype, device, backend, shape, patch, width, bytewise):
    pixels, index, tensors = problem(seed, device, shape, patch, width, 21, dtype=dtype, bytewise=bytewise)
    assert_matches(*calls(pixels, index, patch, backend), tensors)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 1, 127, 128, 129])
def test_any_number_of_patches(seed, device, backend, count):
    pixels, index, tensors = problem(seed, device, (2, 12, 8, 3), 4, 7, count, dtype=torch.float32)
    assert_matches(*calls(pixels, index, 4, backend, normalized=False), tensors)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-3, 30])
def test_small_and_large_weights(seed, dtype, device, backend, scale):
    pixels, index, tensors = problem(seed, device, (1, 16, 16, 3), 8, 16, 9, dtype=dtype, scale=scale)
    assert_matches(*calls(pixels, index, 8, backend), tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_pixels_without_positions(seed, device, backend):
    pixels, index, tensors = problem(seed, device, (2, 16, 8, 3), 4, 10, 5, dtype=torch.float32)
    there = pixels.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    fast, definition = calls(there[:, :, ::2], index % 16 // 2, 4, backend)
    assert_matches(fast, definition, [tensors[0], tensors[1], None])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_rounded_where_all_factors_are_powers_of_two(seed, device, backend):
    # (x / 255 - 128 / 255) / (64 / 255) is the number that the kernels multiply by.
    pixels, index, _ = problem(seed, device, (2, 16, 16, 1), 8, 1, 6, dtype=torch.float16)
    weight = numbers(seed, 9, (16, 64), device, low=-8).half().requires_grad_()
    bias = numbers(seed, 9, (16,), device, low=-8).float()
    position = torch.zeros(4, 16, device=device)
    options = {"patch": 8, "mean": (128 / 255,), "std": (64 / 255,), "backend": backend}
    tokens = patch_project(pixels, weight, bias, index, position=position, **options)
    rows = patch_project(pixels, torch.eye(64, device=device), torch.zeros(64, device=device), index, **options)
    exact = ((rows.double() * 64).round() / 64) @ weight.double().t() + bias
    if backend == "triton":
        assert torch.equal(tokens.double(), exact)
    assert error(tokens, exact) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_index_outside_spoils_its_own_token_only(seed, device, backend):
    pixels, index, tensors = problem(seed, device, (2, 8, 8, 3), 4, 5, 4, dtype=torch.float32)
    outside = torch.tensor([8, -1, 2**40], device=device)
    tokens = calls(pixels, torch.cat([index, outside]), 4, backend)[0](*tensors)
    expected = calls(pixels, index, 4, backend)[1](*tensors)
    assert error(tokens[:4], expected) < TOLERANCE[torch.float32] and tokens[4:].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_multiplies_in_half_and_adds_positions_in_theirs(seed, device, backend):
    pixels, index, tensors = problem(seed, device, (2, 16, 16, 3), 8, 12, 7, dtype=torch.float32)
    fast, definition = calls(pixels, index, 8, backend)
    with torch.autocast(device.type, torch.float16):
        (tokens,), grads = outputs_and_gradients(fast, tensors)
        (without,), _ = outputs_and_gradients(lambda w, b: fast(w, b, None), tensors[:2])
    (expected,), wanted = outputs_and_gradients(definition, [tensor.double() for tensor in tensors])
    assert tokens.dtype == torch.float32 and without.dtype == torch.float16
    assert all(grad.dtype == torch.float32 for grad in grads)
    for got, truth in zip([tokens, *grads], [expected, *wanted], strict=True):
        assert error(got, truth) < TOLERANCE[torch.float16]


def test_origins_beyond_two_to_the_31(seed, device):
    count = 2**31 // (64 * 64 * 3) + 3
    pixels = torch.empty(count, 64, 64, 3, dtype=torch.uint8, device=device)  # memory is taken where it is touched
    pixels[-2:] = numbers(seed, 256, (2, 64, 64, 3), device)
    index = torch.tensor([16 * count - 1, 16 * count - 19], device=device)
    _, _, tensors = problem(seed, device, (2, 64, 64, 3), 16, 16, 1, dtype=torch.float16)
    tensors = [tensor.requires_grad_(False) for tensor in tensors]
    far = calls(pixels, index, 16, "triton")[0](*tensors)
    assert torch.equal(far, calls(pixels[-2:].clone(), index - 16 * (count - 2), 16, "triton")[0](*tensors))


def test_sums_by_position_are_right_and_the_same_in_every_run(seed, dtype, device):
    grad = random(seed, 1100, 20, dtype=dtype, device=device)
    index = numbers(seed, 5 * 70, (1100,), device)
    sums = sum_by_position(grad, index, 70)
    expected = torch.zeros(70, 20, dtype=torch.float64, device=device).index_add_(0, index % 70, grad.double())
    assert sums.dtype == torch.float32 and error(sums, expected) < TOLERANCE[torch.float32]
    assert torch.equal(sums, sum_by_position(grad, index, 70))


def test_folding_keeps_the_size_of_the_weight(seed, device):
    weight, bias = random(seed, 6, 48, device=device), random(seed + 1, 6, device=device)
    scale, shift = affine(MEAN, STD)
    folded, constant = fold(weight, bias, *centered(scale, shift), torch.float32)
    byte = numbers(seed, 256, (48,), device).double()
    normal = byte * torch.tensor(scale).repeat(16).double() + torch.tensor(shift).repeat(16).double()
    assert error(folded @ ((byte - 128) / 64).float() + constant, weight.double() @ normal + bias) < 1e-6
    assert 0.5 < folded.norm() / weight.norm() < 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_given_once_and_to_those_who_ask(seed, device, backend):
    pixels, index, (weight, bias, position) = problem(seed, device, (1, 8, 8, 1), 4, 6, 3, dtype=torch.float32)
    weight.requires_grad_()
    tokens = calls(pixels, index, 4, backend)[0](weight, bias, position)
    (grad,) = torch.autograd.grad(tokens.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|twice"):
        grad.sum().backward()
    assert bias.grad is None and position.grad is None


def test_auto_reads_bytes_in_the_product_where_lines_are_whole_runs(device):
    def chosen(pixels, patch, dtype=torch.float16):
        clips = pixels.to(device).unsqueeze(1)
        weight = torch.zeros(8, patch * patch * pixels.shape[3], dtype=dtype, device=device)
        index = torch.zeros(1, dtype=torch.int64, device=device)
        return OPERATION.explain(clips, weight, weight[:, 0], index, (1, patch, patch)).backend

    pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    assert chosen(pixels, 16) == "triton"
    others = {
        "narrow lines": (pixels, 8),
        "strided": (pixels.permute(0, 2, 1, 3), 16),
        "floating": (pixels.half(), 16),
        "large patches": (torch.zeros(1, 64, 64, 3, dtype=torch.uint8), 64),
        "float32": (pixels, 16, torch.float32),
    }
    assert {name: chosen(*call) for name, call in others.items()} == dict.fromkeys(others, "triton_gather")


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_one_graph(seed, device, backend):
    pixels, index, tensors = problem(seed, device, (2, 8, 8, 3), 4, 6, 5, dtype=torch.float32)
    fast, definition = calls(pixels, index, 4, backend)
    assert_matches(torch.compile(fast, fullgraph=True, backend="aot_eager"), definition, tensors)
    torch.compiler.reset()


def test_launchers_are_sound_operators(seed, device):
    pixels, index, (weight, bias, position) = problem(seed, device, (2, 8, 8, 3), 4, 6, 5, dtype=torch.float32)
    clips, ops = pixels.unsqueeze(1), torch.ops.omnitrunk
    origin, place = ops.locate_patches(clips, index, [1, 4, 4])
    grad = torch.ones(5, 6, device=device)
    cases = {
        "locate_patches": (clips, index, [1, 4, 4]),
        "fold": (weight, bias, [0.5, 1.0, 2.0], [1.0], torch.float16),
        "unfold": (weight, bias, [0.5, 1.0, 2.0], [1.0], torch.float16),
        "project_patches": (clips, origin, place, weight, bias, position, [1, 4, 4], torch.float32),
        "add_positions": (grad, bias, position, index, torch.float16),
        "sum_by_position": (grad, index, 4),
    }
    for name, call in cases.items():
        torch.library.opcheck(getattr(ops, name).default, call, test_utils=("test_schema", "test_faketensor"))
