from __future__ import annotations

from math import prod

import pytest
import torch
from torch.nn import functional

from omnitrunk.kernels import patch_project
from omnitrunk.kernels.linear import ROWS, onednn_missing
from omnitrunk.kernels.patch_project import cost, cpu

from .compare import assert_agree, poisoned

BACKENDS = [
    pytest.param("onednn", marks=pytest.mark.skipif(onednn_missing() is not None, reason=str(onednn_missing()))),
    "reference",
]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def by_convolution(pixels, weight, bias, position, index, patch):
    """All patches by the usual strided convolution, positions added, then the picked ones."""
    kernel = weight.unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2)
    tokens = functional.conv2d(pixels.permute(0, 3, 1, 2), kernel, bias, stride=patch)
    tokens = tokens.flatten(2).transpose(1, 2) + (0 if position is None else position)
    return tokens.flatten(0, 1)[index]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [1, 13, 64, 70, 200])
@pytest.mark.parametrize("block_values", [1, 64 * 48, cpu.BLOCK_VALUES])
def test_matches_the_convolution_on_bytes(backend, count, block_values, seed, monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK_VALUES", block_values)
    torch.manual_seed(seed)
    pixels = torch.randint(0, 256, (5, 8, 12, 3), dtype=torch.uint8)
    weight, bias, position = torch.randn(7, 48), torch.randn(7), torch.randn(6, 7)
    index = torch.randint(0, 30, (count,))
    normalized = (pixels.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    poisoned(monkeypatch)

    def call(weight, bias, position):
        options = {"patch": 4, "position": position, "mean": MEAN, "std": STD, "backend": backend}
        return patch_project(pixels, weight, bias, index, **options)

    assert_agree(call, lambda *t: by_convolution(normalized, *t, index, 4), weight, bias, position)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("patch", [(2, 4, 4), (3, 2, 8), (1, 8, 4)])
def test_matches_the_convolution_on_clips(backend, patch, seed):
    torch.manual_seed(seed)
    clips = torch.randint(0, 256, (2, 6, 8, 16, 3), dtype=torch.uint8)
    cells = clips[0, ..., 0].numel() // prod(patch)
    index = torch.randint(0, 2 * cells, (21,))
    normalized = (clips.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)

    def by_convolution_in_3d(weight, bias, position):
        kernel = weight.unflatten(1, (*patch, 3)).permute(0, 4, 1, 2, 3)
        tokens = functional.conv3d(normalized.permute(0, 4, 1, 2, 3), kernel, bias, stride=patch)
        return (tokens.flatten(2).transpose(1, 2) + position).flatten(0, 1)[index]

    def call(weight, bias, position):
        options = {"patch": patch, "position": position, "mean": MEAN, "std": STD, "backend": backend}
        return patch_project(clips, weight, bias, index, **options)

    shapes = (7, 3 * prod(patch)), (7,), (cells, 7)
    assert_agree(call, by_convolution_in_3d, *(torch.randn(shape) for shape in shapes))


@pytest.mark.parametrize("rows", [1, 64, 65, 1000, 5000])
def test_blocks_cover_all_rows_once_and_evenly(rows):
    blocks = cpu._blocks(rows, 768)
    assert torch.equal(torch.cat([torch.arange(rows)[block] for block in blocks]), torch.arange(rows))
    sizes = {block.stop - block.start for block in blocks[:-1]}
    assert len(sizes) <= 1 and all(size % ROWS == 0 and size * 768 <= cpu.BLOCK_VALUES for size in sizes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_takes_strided_floating_pixels_without_positions(backend, seed):
    torch.manual_seed(seed)
    pixels, index = torch.randn(2, 1, 6, 6).permute(0, 2, 3, 1), torch.tensor([7, 0, 3])
    assert_agree(
        lambda w, b: patch_project(pixels, w, b, index, patch=3, backend=backend),
        lambda w, b: by_convolution(pixels.double(), w, b, None, index, 3),
        torch.randn(4, 9),
        torch.randn(4),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_fixed_positions_get_no_gradient_and_pixels_never_do(backend):
    pixels = torch.ones(1, 4, 4, 1, requires_grad=True)
    weight, bias, position = torch.ones(2, 4, requires_grad=True), torch.ones(2), torch.ones(4, 2)
    tokens = patch_project(pixels, weight, bias, torch.tensor([1]), patch=2, position=position, backend=backend)
    tokens.add_(1).sum().backward()
    assert weight.grad.eq(1).all() and position.grad is None and bias.grad is None and pixels.grad is None


def test_no_picked_patch_gives_no_token_but_a_gradient_of_zeros():
    weight = torch.ones(2, 4, requires_grad=True)
    index = torch.zeros(0, dtype=torch.int64)
    tokens = patch_project(torch.ones(1, 4, 4, 1), weight, torch.ones(2), index, patch=2, position=torch.ones(4, 2))
    tokens.sum().backward()
    assert tokens.shape == (0, 2) and weight.grad.eq(0).all()


def test_gradcheck_of_the_definition(seed):
    torch.manual_seed(seed)
    pixels = torch.randint(0, 256, (2, 4, 4, 2), dtype=torch.uint8)
    shapes = ((3, 8), (3,), (4, 3))
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    index = torch.tensor([0, 5, 5, 2])

    def call(weight, bias, position):
        return patch_project(pixels, weight, bias, index, patch=2, position=position, backend="reference")

    assert torch.autograd.gradcheck(call, tensors)


def test_refuses_what_does_not_fit():
    pixels, index = torch.zeros(1, 4, 4, 3), torch.tensor([0])
    with pytest.raises(ValueError, match="2 x 2 x 3"):
        patch_project(pixels, torch.ones(2, 11), torch.ones(2), index, patch=2)
    with pytest.raises(ValueError, match="5 positions"):
        patch_project(pixels, torch.ones(2, 12), torch.ones(2), index, patch=2, position=torch.ones(5, 2))


def test_cost_has_no_pixel_gradient():
    assert cost(10, 48, 8, backward=True).flop < cost(10, 48, 8).flop < 1.02 * 2 * 10 * 49 * 8
