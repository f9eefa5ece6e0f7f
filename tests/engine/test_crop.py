from __future__ import annotations

import math

import numpy as np
import pytest

from omnitrunk.engine.data.decode.crop import center_crop, random_crop
from omnitrunk.kernels.philox import uniform


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def sizes(rng, count, low=1, high=300):
    return rng.integers(low, high, count), rng.integers(low, high, count)


def expected_crop(height, width, draws, area):
    """The rule of the random-resized crop, one sample at a time."""
    for share, shape in zip(draws[:10], draws[10:20], strict=True):
        pixels = height * width * (area[0] + share * (area[1] - area[0]))
        aspect = (3 / 4) * ((4 / 3) / (3 / 4)) ** shape
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            return (int(draws[20] * (height - h + 1)), int(draws[21] * (width - w + 1))), (h, w)
    h, w = height, width
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return ((height - h) // 2, (width - w) // 2), (h, w)


def test_crops_follow_the_rule(rng, seed):
    heights, widths = sizes(rng, 3000)
    positions = rng.integers(0, 2**40, 3000)
    area = (0.2, 1.0)
    crop = random_crop(heights, widths, positions, seed=seed, area=area, flip=True)
    draws = uniform(seed, "crop", positions, 23)
    for row in range(3000):
        anchor, shape = expected_crop(int(heights[row]), int(widths[row]), draws[row], area)
        assert (tuple(crop.anchor[row]), tuple(crop.shape[row])) == (anchor, shape)
    assert (crop.anchor >= 0).all() and (crop.shape >= 1).all()
    assert (crop.anchor + crop.shape <= np.stack([heights, widths], axis=1)).all()


def test_shares_aspects_places_and_flips_are_spread_as_promised(seed):
    count, side = 20000, 1000
    side_of_all = np.full(count, side)
    crop = random_crop(side_of_all, side_of_all, np.arange(count), seed=seed, area=(0.2, 0.5), flip=True)
    share = crop.shape.prod(axis=1) / side**2
    aspect = np.log(crop.shape[:, 1] / crop.shape[:, 0])
    place = crop.anchor / (side - crop.shape)
    # Standard errors are 0.0006, 0.0012, 0.002 and 0.0035; five of them is once in a million.
    assert abs(share.mean() - 0.35) < 0.004 and share.min() > 0.19 and share.max() < 0.51
    assert abs(aspect.mean()) < 0.007 and np.abs(aspect).max() < math.log(4 / 3) + 0.01
    assert np.abs(place.mean(axis=0) - 0.5).max() < 0.012
    assert abs(crop.flip.mean() - 0.5) < 0.02


def test_a_crop_depends_on_its_own_position_only(rng, seed):
    heights, widths = sizes(rng, 40, 30)
    positions = rng.permutation(1000)[:40]
    whole = random_crop(heights, widths, positions, seed=seed, area=(0.2, 1.0), flip=True)
    some = rng.permutation(40)[:7]
    part = random_crop(heights[some], widths[some], positions[some], seed=seed, area=(0.2, 1.0), flip=True)
    for a, b in zip(whole, part, strict=True):
        assert np.array_equal(a[some], b)


def test_without_flip_nothing_is_mirrored(seed):
    side = np.full(50, 64)
    assert not random_crop(side, side, np.arange(50), seed=seed, area=(0.2, 1.0), flip=False).flip.any()


def test_evaluation_sees_the_largest_centred_square(rng):
    heights, widths = sizes(rng, 200)
    crop = center_crop(heights, widths, np.arange(200))
    side = np.minimum(heights, widths)
    assert np.array_equal(crop.shape, np.stack([side, side], axis=1)) and not crop.flip.any()
    left_over = np.stack([heights, widths], axis=1) - crop.shape - 2 * crop.anchor
    assert ((left_over == 0) | (left_over == 1)).all()
