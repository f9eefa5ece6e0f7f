from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from omnitrunk.kernels.dispatch import use
from omnitrunk.models.layers.upernet import UPerNet, pool, resize

SIZES, WIDTHS = [(13, 10), (7, 5), (4, 3)], [4, 8, 16]


def head_and_maps(seed, grids=(1, 2, 3), channels=6, classes=5, batch=2):
    generator = torch.Generator().manual_seed(seed)
    head = UPerNet(WIDTHS, channels, classes, grids).double()
    for parameter in head.parameters():
        torch.nn.init.uniform_(parameter, -1, 1, generator=generator)
    sizes = zip(SIZES, WIDTHS, strict=True)
    maps = [torch.randn(batch, *size, width, dtype=torch.float64, generator=generator) for size, width in sizes]
    return head, maps


def first(x):
    return x.permute(0, 3, 1, 2)


def slow_projection(layer, x):
    """On channels first, by a convolution of one pixel."""
    return slow_norm(layer.norm, functional.conv2d(x, layer.linear.weight[:, :, None, None])).relu()


def slow_convolution(layer, x):
    return slow_norm(layer.norm, functional.conv2d(x, layer.weight, padding=1)).relu()


def slow_norm(norm, x):
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    weight, bias = (values[:, None, None] for values in (norm.weight, norm.bias))
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def up(x, size):
    return functional.interpolate(x, size, mode="bilinear", align_corners=False)


def slow_head(head, maps, grids):
    """UPerNet with torch's own pooling and interpolation."""
    fine = [
        slow_projection(lateral, slow_norm(lateral.map_norm, first(x)))
        for lateral, x in zip(head.laterals, maps[:-1], strict=True)
    ]
    last = first(maps[-1])
    pyramid = [last]
    for grid, branch in zip(grids, head.pyramid.branches, strict=True):
        pyramid.append(up(slow_projection(branch, functional.adaptive_avg_pool2d(last, grid)), last.shape[2:]))
    levels = [*fine, slow_convolution(head.pyramid.fuse, torch.cat(pyramid, 1))]
    for place in (1, 0):
        levels[place] = levels[place] + up(levels[place + 1], levels[place].shape[2:])
    smoothed = [slow_convolution(layer, x) for layer, x in zip(head.smooth, levels[:-1], strict=True)] + [levels[-1]]
    fused = slow_convolution(head.fuse, torch.cat([up(x, SIZES[0]) for x in smoothed], 1))
    return functional.conv2d(fused, head.classifier.weight[:, :, None, None], head.classifier.bias).permute(0, 2, 3, 1)


@pytest.mark.parametrize("grids", [(1, 2, 3), (2,), (1, 6)])
def test_the_head_is_upernet_gradients_included(grids, seed):
    head, maps = head_and_maps(seed, grids)
    for x in maps:
        x.requires_grad_()
    found, expected = head(maps), slow_head(head, maps, grids)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weight, leaves = torch.randn_like(found), [*head.parameters(), *maps]
    gradients = torch.autograd.grad((found * weight).sum(), leaves)
    wanted = torch.autograd.grad((expected * weight).sum(), leaves)
    torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (9, 4), (20, 3)])
def test_resizing_and_pooling_are_those_of_torch(size, seed):
    x = torch.randn(2, 9, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(first(resize(x, size)), up(first(x), size))
    for cells in (1, 3, 4, 6):
        torch.testing.assert_close(first(pool(x, cells)), functional.adaptive_avg_pool2d(first(x), cells))


def test_pictures_do_not_touch_each_other(seed):
    """As the statistics of batch normalization would."""
    head, maps = head_and_maps(seed, batch=3)
    torch.testing.assert_close(head(maps)[1:2], head([x[1:2] for x in maps]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("grids", [(1, 2, 3), (4, 6)])
def test_arithmetic_is_what_torch_counts(grids, seed):
    head, maps = head_and_maps(seed, grids)
    counter = FlopCounterMode(display=False)
    with use("reference"), counter, torch.no_grad():
        head(maps)
    assert counter.get_total_flops() == 2 * head.flops(SIZES)
