from __future__ import annotations

import math

import pytest
import torch

from omnitrunk.models import MultiMAE
from omnitrunk.models.layers.positions import (
    FixedPositions,
    column_row_table,
    interleaved_table,
    interpolate,
    sincos_table,
    with_class_row,
)
from tests.models.small import random_batch, small_config


def by_hand(first, second, dim):
    frequencies = [10000 ** (-j / (dim // 4)) for j in range(dim // 4)]
    angles = [[place * f for f in frequencies] for place in (first, second)]
    return torch.tensor([wave(angle) for part in angles for wave in (math.sin, math.cos) for angle in part])


@pytest.mark.parametrize(("height", "width", "dim"), [(3, 5, 8), (14, 14, 64), (1, 7, 4)])
def test_default_table_holds_row_and_column(height, width, dim):
    table = sincos_table(height, width, dim)
    assert table.shape == (height * width, dim) and table.dtype == torch.float32
    for row in range(height):
        for column in range(width):
            torch.testing.assert_close(table[row * width + column], by_hand(row, column, dim), rtol=1e-5, atol=2e-6)


def test_faithful_table_is_scrambled_unless_square():
    assert torch.equal(sincos_table(6, 6, 16), sincos_table(6, 6, 16, faithful=True))
    scrambled = sincos_table(6, 4, 16, faithful=True)
    for (row, column), (first, second) in {(0, 3): (0, 3), (1, 0): (0, 4), (1, 2): (1, 0)}.items():
        torch.testing.assert_close(scrambled[row * 4 + column], by_hand(first, second, 16), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("height", "width", "dim"), [(3, 5, 8), (14, 14, 64)])
def test_table_of_mae_holds_column_and_row(height, width, dim):
    table = column_row_table(height, width, dim)
    assert table.shape == (height * width, dim) and table.dtype == torch.float32
    for row in range(height):
        for column in range(width):
            torch.testing.assert_close(table[row * width + column], by_hand(column, row, dim), rtol=1e-6, atol=1e-7)


def test_table_of_videomae_interleaves_sine_and_cosine():
    table = interleaved_table(1568, 12)
    assert table.shape == (1568, 12) and table.dtype == torch.float32
    for n in (0, 1, 37, 1567):
        for channel in range(12):
            angle = n / 10000 ** (2 * (channel // 2) / 12)
            assert table[n, channel].item() == pytest.approx((math.sin, math.cos)[channel % 2](angle), abs=1e-6)


def test_class_row_is_zero_and_first(seed):
    table = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(with_class_row(table), torch.cat([torch.zeros(1, 4), table]))


def test_fixed_positions_are_looked_up(seed):
    table = torch.rand(5, 4, generator=torch.Generator().manual_seed(seed))
    index = torch.tensor([[4, 0, 1], [2, 2, 3]])
    positions = FixedPositions(table)
    assert torch.equal(positions({}, index), table[index]) and not list(positions.parameters())


def test_interpolation_keeps_a_grid_and_averages_neighbors():
    table = sincos_table(4, 6, 8)
    torch.testing.assert_close(interpolate(table, (4, 6), (4, 6), "bicubic"), table)
    halved = interpolate(table, (4, 6), (2, 3), "bilinear").view(2, 3, 8)
    grid = table.view(4, 6, 8)
    torch.testing.assert_close(halved[1, 2], grid[2:4, 4:6].mean((0, 1)))


def test_default_computes_its_table_and_faithful_resamples_the_stored_one(seed):
    corrected = MultiMAE(small_config(image_size=(24, 40)), seed)
    assert torch.equal(corrected.tokenizers["rgb"].fitted, sincos_table(3, 5, 24))
    config = small_config(image_size=(24, 40), faithful=True, position_size=32)
    faithful, stored = MultiMAE(config, seed), sincos_table(4, 4, 24)
    assert torch.equal(faithful.state_dict()["tokenizers.rgb.position"], stored)
    for name, mode in {"rgb": "bicubic", "depth": "bicubic", "semseg": "bilinear"}.items():
        assert torch.equal(faithful.tokenizers[name].fitted, interpolate(stored, (4, 4), (3, 5), mode))
    decoder = faithful.decoders["rgb"]
    assert torch.equal(decoder.fitted, interpolate(decoder.position, (4, 4), (3, 5), "bilinear"))
    assert faithful(random_batch(config, 2, seed), faithful.plan(seed, range(2)))["loss"].isfinite()


def test_a_width_that_is_no_multiple_of_four_is_refused():
    with pytest.raises(ValueError, match="try 8"):
        sincos_table(2, 2, 6)
