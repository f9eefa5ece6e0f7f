from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from omnitrunk.kernels.patches import copy_patches, gather_patches
from omnitrunk.kernels.patches.triton_gather import gather_rows
from tests.triton.compare import TOLERANCE, error, strided

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = [
    ((2, 32, 48, 3), 16),
    ((3, 28, 14, 3), 14),
    ((2, 21, 7, 1), 7),
    ((2, 16, 24, 3), (8, 6)),
    ((2, 4, 16, 32, 3), (2, 8, 16)),
    ((2, 6, 5, 9, 2), (3, 1, 3)),
]


def numbers(seed, high, shape, device, low=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def grid(shape, patch):
    sides = (patch, patch) if isinstance(patch, int) else patch
    return torch.tensor(shape[1:-1]).div(torch.tensor(sides), rounding_mode="floor").prod().item()


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
@pytest.mark.parametrize("count", [1, 16, 17])
def test_normalizes_bytes(seed, dtype, device, shape, patch, count):
    pixels = numbers(seed, 256, shape, device).to(torch.uint8)
    index = numbers(seed + 1, shape[0] * grid(shape, patch), (count,), device)
    options = {"mean": MEAN[: shape[-1]], "std": STD[: shape[-1]]}
    rows = gather_patches(pixels, index, patch, dtype=dtype, backend="triton", **options)
    expected = gather_patches(pixels, index, patch, dtype=torch.float64, backend="reference", **options)
    assert rows.dtype == dtype and error(rows, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_copies_every_bit(seed, device, kind, shape, patch):
    pixels = numbers(seed, 2**7, shape, device, low=0 if kind == torch.uint8 else -(2**7)).to(kind)
    index = numbers(seed + 1, shape[0] * grid(shape, patch), (33,), device)
    rows = copy_patches(pixels, index, patch, backend="triton")
    assert rows.dtype == kind and torch.equal(rows, copy_patches(pixels, index, patch, backend="reference"))


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (3, 2, 1, 0)])
def test_strided_pixels_and_index(seed, device, order):
    whole = numbers(seed, 256, (4, 16, 24, 3), device).to(torch.uint8)
    there = whole.permute(order).contiguous().permute([order.index(axis) for axis in range(4)])
    index = strided(numbers(seed + 1, 4 * 6, (9,), device))
    for pixels in (there, there[:, 8:, ::2], there[1:2].expand(4, -1, -1, -1)):
        rows = gather_patches(pixels, index % (len(pixels) * 2), (8, 4), backend="triton")
        expected = gather_patches(pixels, index % (len(pixels) * 2), (8, 4), backend="reference")
        assert error(rows, expected) < TOLERANCE[torch.float32]


def test_nothing_picked(device):
    index = torch.zeros(0, dtype=torch.int64, device=device)
    pixels = torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device=device)
    assert gather_patches(pixels, index, 2, backend="triton").shape == (0, 12)


def test_an_index_outside_reads_nothing_else(seed, device):
    pixels = numbers(seed, 256, (2, 4, 4, 3), device).to(torch.uint8)
    index = torch.tensor([7, 8, -1, 0, 2**40], device=device)
    rows = gather_patches(pixels, index, 2, backend="triton")
    assert torch.equal(rows[[0, 3]], gather_patches(pixels, index[[0, 3]], 2, backend="triton"))
    assert rows[[1, 2, 4]].isnan().all()
    assert copy_patches(pixels, index, 2, backend="triton")[[1, 2, 4]].eq(0).all()


def test_offsets_beyond_two_to_the_31(seed, device):
    count = 2**31 // (64 * 64 * 3) + 3
    pixels = torch.empty(count, 64, 64, 3, dtype=torch.uint8, device=device)  # memory is taken where it is touched
    pixels[-2:] = numbers(seed, 256, (2, 64, 64, 3), device)
    index = torch.tensor([16 * count - 1, 16 * count - 19], device=device)
    rows = copy_patches(pixels, index, 16, backend="triton")
    assert torch.equal(rows, copy_patches(pixels[-2:], index - 16 * (count - 2), 16, backend="reference"))


def test_is_one_graph_of_a_sound_operator(seed, device):
    pixels, index = numbers(seed, 256, (2, 4, 6, 3), device).to(torch.uint8), torch.tensor([5, 0], device=device)
    call = (pixels.unsqueeze(1), index, [1, 2, 2], torch.float16, [0.5, 1.0, 2.0], [0.0, 1.0, -1.0])
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.omnitrunk.gather_rows.default, call, test_utils=tests)

    def run(pixels, index):
        return gather_patches(pixels, index, 2, mean=MEAN, std=STD, backend="triton")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(pixels, index), run(pixels, index))
    torch.compiler.reset()


def test_one_factor_serves_all_channels(seed, device):
    pixels, index = numbers(seed, 256, (2, 4, 4, 3), device).to(torch.uint8), torch.tensor([3, 6], device=device)
    rows = gather_rows(pixels.unsqueeze(1), index, [1, 2, 2], torch.float16, [1 / 64], [-2.0])
    assert torch.equal(rows.float(), (copy_patches(pixels, index, 2, backend="reference").float() - 128) / 64)
