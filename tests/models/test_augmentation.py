"""What fine-tuning draws and changes, against formulations sample by sample in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.models.augmentation.boxes import boxes_at, inside
from omnitrunk.models.augmentation.erasing import AREA, ASPECT, Eraser, draw_erasing, fill_boxes
from omnitrunk.models.augmentation.mixing import draw_mixing, mix_pixels, mix_sounds
from omnitrunk.models.augmentation.spans import blank, draw_spans
from omnitrunk.models.modality import IMAGENET_MEAN, IMAGENET_STD

SHAPE = (24, 32)


def mixing_of(seed, positions, *, mixup=0.8, cutmix=1.0, mixed=1.0, shape=SHAPE):
    return draw_mixing(seed, np.asarray(positions), mixup=mixup, cutmix=cutmix, mixed=mixed, shape=shape)


def random_bytes(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("frames", [(), (3,)])
@pytest.mark.parametrize("options", [{}, {"mixup": 0.0}, {"cutmix": 0.0}, {"mixed": 0.4}])
def test_pixels_are_mixed_as_told(seed, frames, options):
    mixing, pixels = mixing_of(seed, range(10, 74), **options), random_bytes(seed, 64, *frames, *SHAPE, 3)
    mixtures, kinds = mix_pixels(pixels, mixing), set()
    assert mixtures.dtype == torch.uint8
    for row in range(64):
        own, other = pixels[row].double().numpy(), pixels[row ^ 1].double().numpy()
        (top, bottom, left, right), share = mixing.box[row].tolist(), mixing.share[row].item()
        area = (bottom - top) * (right - left) / (SHAPE[0] * SHAPE[1])
        if area:
            expected = own.copy()
            expected[..., top:bottom, left:right, :] = other[..., top:bottom, left:right, :]
            assert share == pytest.approx(1 - area) and np.array_equal(mixtures[row].numpy(), expected)
        else:
            expected = share * own + (1 - share) * other
            assert np.abs(mixtures[row].numpy() - expected).max() <= 0.5 + 1e-4
        kinds.add("cut" if area else "own" if share == 1 else "mixed")
    assert ("mixed" in kinds) == (options.get("mixup") != 0) and ("cut" in kinds) == (options.get("cutmix") != 0)


def test_floating_pixels_are_not_rounded(seed):
    mixing, pixels = mixing_of(seed, range(4), cutmix=0.0), torch.rand(4, *SHAPE, 3, dtype=torch.float64)
    share = mixing.share.double()[:, None, None, None]
    torch.testing.assert_close(mix_pixels(pixels, mixing), share * pixels + (1 - share) * pixels[[1, 0, 3, 2]])


def test_mixtures_belong_to_positions_however_the_batch_is_cut(seed):
    positions = 6 + np.arange(12)
    pixels, whole = random_bytes(seed, 12, *SHAPE, 3), mixing_of(seed, positions, mixed=0.7)
    for rows in (np.arange(4, 8), np.array([9, 2, 8, 3])):
        part = mixing_of(seed, positions[rows], mixed=0.7)
        assert torch.equal(mix_pixels(pixels[rows], part), mix_pixels(pixels, whole)[rows])
        assert torch.equal(part.share, whole.share[rows])
    with pytest.raises(ValueError, match="a multiple of 2 x processes x"):
        mixing_of(seed, positions[:3])


def test_shares_are_of_the_beta_distribution_and_half_are_cut(seed):
    count = 4000
    mixing = mixing_of(seed, np.arange(count), cutmix=0.0, mixed=0.5)
    mixed = mixing.share[mixing.share < 1].double()
    assert abs(len(mixed) / count - 0.5) < 0.04
    assert abs(mixed.mean() - 0.5) < 0.03 and abs(mixed.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.01
    both = mixing_of(seed, np.arange(count))
    assert abs((both.weight == 1).double().mean() - 0.5) < 0.04
    middle = both.box.double().view(-1, 2, 2).mean(2)[both.weight == 1] / torch.tensor(SHAPE)
    assert (middle.mean(0) - 0.5).abs().max() < 0.03
    alone = mixing_of(seed, np.arange(count), mixup=0.0, shape=(1000, 1000))
    # Uniform shares before the border cuts boxes: at least as much is left of one's own.
    assert (alone.weight == 1).all() and 0.5 < alone.share.mean() < 0.75


def test_nothing_is_drawn_for_nothing(seed):
    assert mixing_of(seed, [0, 1, 2], mixup=0.0, cutmix=0.0) is None
    assert draw_erasing(seed, np.arange(3), rate=0.0, shape=SHAPE) is None
    assert draw_spans(seed, np.arange(3), most=(0, 0), shape=SHAPE) is None


def test_sounds_are_mixed_without_their_means_up_to_their_ends(seed):
    rng = np.random.default_rng(seed)
    lengths = np.array([100, 60, 80, 100])
    waves = (rng.standard_normal((4, 100)) + 3) * (np.arange(100) < lengths[:, None])
    mixing = mixing_of(seed, range(4), mixup=10.0, cutmix=0.0, shape=None)
    tensors = {"audio": torch.from_numpy(waves), "audio_length": torch.from_numpy(lengths)}
    found = mix_sounds(tensors, mixing).numpy()
    centered = [np.pad(wave[:n] - wave[:n].mean(), (0, 100 - n)) for wave, n in zip(waves, lengths, strict=True)]
    for row, share in enumerate(mixing.share.tolist()):
        np.testing.assert_allclose(found[row], share * centered[row] + (1 - share) * centered[row ^ 1], atol=1e-6)
    spectrograms = torch.rand(4, 5, 6, dtype=torch.float64)
    shares = mixing.share.double()[:, None, None]
    torch.testing.assert_close(
        mix_sounds({"audio": spectrograms}, mixing), shares * spectrograms + (1 - shares) * spectrograms[[1, 0, 3, 2]]
    )


def test_boxes_end_at_the_border():
    boxes = boxes_at(np.array([[0, 31], [12, 10]]), np.array([[7, 8], [4, 6]]), SHAPE)
    assert boxes.tolist() == [[0, 4, 27, 32], [10, 14, 7, 13]]
    mask = inside(torch.from_numpy(boxes), *SHAPE)
    assert mask.sum((1, 2)).tolist() == [20, 24] and mask[0, :4, 27:].all() and mask[1, 10:14, 7:13].all()


@pytest.mark.parametrize("frames", [(), (2,)])
def test_rectangles_become_noise(seed, frames):
    pixels, eraser = random_bytes(seed, 64, *frames, *SHAPE, 3), Eraser(np.prod((*frames, *SHAPE)))
    erasing = draw_erasing(seed, np.arange(64), rate=0.5, shape=SHAPE)
    found = eraser(pixels, erasing)
    changed = (found != pixels).any(dim=-1).reshape(64, -1, *SHAPE)
    erased = changed.flatten(1).any(dim=1)
    assert 12 < erased.sum() < 52
    for row in range(64):
        top, bottom, left, right = erasing.box[row].tolist()
        outside = changed[row].clone()
        outside[:, top:bottom, left:right] = False
        assert not outside.any() and changed[row, :, top:bottom, left:right].double().mean().nan_to_num(1) > 0.9
    assert torch.equal(eraser(pixels[5:9], draw_erasing(seed, np.arange(5, 9), rate=0.5, shape=SHAPE)), found[5:9])
    with pytest.raises(ValueError, match="give uint8 pixels, or set erase to 0"):
        eraser(pixels / 255, erasing)


@pytest.mark.parametrize(("shape", "value"), [((*SHAPE, 3), 0), ((2, *SHAPE, 3), 0), ((*SHAPE, 1), -1.5)])
def test_rectangles_become_one_value(seed, shape, value):
    erasing = draw_erasing(seed, np.arange(16), rate=0.7, shape=SHAPE)
    pixels = random_bytes(seed, 16, *shape) if value == 0 else random_bytes(seed, 16, *shape) / 255
    expected = pixels.clone()
    for row, (top, bottom, left, right) in enumerate(erasing.box.tolist()):
        expected[row, ..., top:bottom, left:right, :] = value
    found = fill_boxes(pixels, erasing, value)
    assert found.dtype == pixels.dtype and torch.equal(found, expected) and not torch.equal(found, pixels)


def test_rectangles_and_noise_have_the_published_sizes(seed):
    erasing = draw_erasing(seed, np.arange(3000), rate=0.25, shape=(224, 160))
    box = erasing.box[erasing.box[:, 1] > 0].double()
    height, width = box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]
    assert abs(len(box) / 3000 - 0.25) < 0.035 and box[:, 1].max() <= 224 and box[:, 3].max() <= 160
    area, aspect = height * width / (224 * 160), height / width
    assert AREA[0] * 0.9 < area.min() and area.max() < AREA[1] * 1.01 and abs(area.mean() - sum(AREA) / 2) < 0.02
    assert ASPECT[0] * 0.9 < aspect.min() and aspect.max() < ASPECT[1] * 1.1
    levels = Eraser(40000).noise.double() / 255
    assert np.allclose(levels.mean(0), IMAGENET_MEAN, atol=0.01)
    assert np.allclose(levels.std(0), IMAGENET_STD, atol=0.02)  # a little less: what bytes cannot hold is cut


def test_spans_are_blanked(seed):
    spectrograms, spans = torch.randn(50, 40, 20, 1), draw_spans(seed, np.arange(50), most=(12, 6), shape=(40, 20))
    found = blank(spectrograms, spans, -7.0)
    for row in range(50):
        (first, end), (low, high) = spans.frames[row].tolist(), spans.bands[row].tolist()
        assert 0 <= first <= end <= 40 and end - first < 12 and 0 <= low <= high <= 20 and high - low < 6
        expected = spectrograms[row].clone()
        expected[first:end], expected[:, low:high] = -7.0, -7.0
        assert torch.equal(found[row], expected)
    again = draw_spans(seed, np.array([7, 3]), most=(12, 6), shape=(40, 20))
    assert torch.equal(again.frames, spans.frames[[7, 3]]) and torch.equal(again.bands, spans.bands[[7, 3]])
    lengths = draw_spans(seed, np.arange(4000), most=(48, 0), shape=(100, 20))
    widths = (lengths.frames[:, 1] - lengths.frames[:, 0]).double()
    assert abs(widths.mean() - 23.5) < 1 and (lengths.bands[:, 1] == lengths.bands[:, 0]).all()
