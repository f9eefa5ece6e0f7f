from __future__ import annotations

from math import prod

import pytest
import torch

from omnitrunk.kernels import native
from omnitrunk.kernels.patches import copy_patches, cost, gather_patches
from omnitrunk.kernels.patches.grid import alignment_of

needs_module = pytest.mark.skipif(not native.available(), reason=str(native.missing_reason()))
BACKENDS = [pytest.param("cpu", marks=needs_module), "reference"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def by_loop(pixels, index, patch):
    """One patch after the other, cut with slices."""
    clips = pixels if pixels.dim() == 5 else pixels[:, None]
    frames, height, width = (1, patch, patch) if isinstance(patch, int) else (1, *patch)[-3:]
    _, down, across = clips.shape[1] // frames, clips.shape[2] // height, clips.shape[3] // width
    rows = [pixels.new_zeros(0, frames * height * width * clips.shape[4])]
    for flat in index.tolist():
        sample, cell = divmod(flat, clips.shape[1] // frames * down * across)
        time, left = cell // (down * across) * frames, cell % across * width
        top = cell // across % down * height
        cube = clips[sample, time : time + frames, top : top + height, left : left + width]
        rows.append(cube.reshape(1, -1))
    return torch.cat(rows)


def random_pixels(shape, dtype):
    return torch.randint(0, 256, shape).to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64, torch.float64])
@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((2, 6, 9, 3), 3),
        ((1, 4, 4, 1), 4),
        ((3, 10, 5, 2), 5),
        ((2, 3, 2, 7), 1),
        ((2, 8, 6, 3), (2, 6)),
        ((2, 8, 6, 1), (8, 1)),
        ((2, 6, 4, 6, 3), (2, 2, 2)),
        ((2, 6, 4, 6, 3), (3, 2, 6)),
        ((2, 3, 4, 4, 2), (1, 4, 4)),
    ],
)
def test_copies_the_picked_patches(backend, dtype, shape, patch, seed):
    torch.manual_seed(seed)
    pixels = random_pixels(shape, dtype)
    sides = (patch, patch) if isinstance(patch, int) else patch
    patches = shape[0] * prod(size // side for size, side in zip(shape[1:-1], sides, strict=True))
    for index in (torch.randint(0, patches, (11,)), torch.arange(patches), torch.zeros(0, dtype=torch.int64)):
        rows = copy_patches(pixels, index, patch, backend=backend)
        assert rows.dtype == dtype and torch.equal(rows, by_loop(pixels, index, patch))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 8, 12, 3), 4), ((2, 8, 12, 3), (2, 6)), ((2, 4, 8, 8, 3), (2, 4, 8))]
)
def test_normalizes_bytes(backend, normalized, shape, patch, seed):
    torch.manual_seed(seed)
    pixels, index = random_pixels(shape, torch.uint8), torch.randint(0, 8, (9,))
    mean, std = (MEAN, STD) if normalized else ((0, 0, 0), (1, 1, 1))
    values = by_loop(pixels.double() / 255, index, patch).unflatten(1, (-1, 3))
    expected = ((values - torch.tensor(mean)) / torch.tensor(std)).flatten(1)
    arguments = {"mean": mean, "std": std} if normalized else {}
    rows = gather_patches(pixels, index, patch, backend=backend, **arguments)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_definition_writes_float64_and_auto_falls_back_to_it(seed):
    torch.manual_seed(seed)
    pixels, index = random_pixels((1, 4, 4, 3), torch.uint8), torch.tensor([3, 0])
    rows = gather_patches(pixels, index, 2, mean=MEAN, std=STD, dtype=torch.float64)
    values = by_loop(pixels.double() / 255, index, 2).unflatten(1, (-1, 3))
    expected = (values - torch.tensor(MEAN, dtype=torch.float64)) / torch.tensor(STD, dtype=torch.float64)
    torch.testing.assert_close(rows, expected.flatten(1), rtol=1e-12, atol=1e-12)


def test_takes_floating_pixels_as_they_are(seed):
    torch.manual_seed(seed)
    pixels, index = torch.randn(2, 4, 6, 1), torch.tensor([5, 1, 7])
    rows = gather_patches(pixels, index, 2, mean=(9.0,), std=(9.0,))
    assert torch.equal(rows, by_loop(pixels, index, 2))


def test_serves_strided_pixels(seed):
    torch.manual_seed(seed)
    channels_first = random_pixels((2, 3, 8, 8), torch.uint8)
    pixels, index = channels_first.permute(0, 2, 3, 1), torch.randint(0, 32, (8,))[::2]
    assert torch.equal(copy_patches(pixels, index, 2), by_loop(pixels, index, 2))
    with pytest.raises(ValueError, match="contiguous"):
        copy_patches(pixels, index, 2, backend="cpu")


def test_the_definition_reads_the_picked_patches_only():
    class Watched(torch.Tensor):
        copied = 0

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            result = super().__torch_function__(function, types, args, kwargs or {})
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() != address:
                cls.copied = max(cls.copied, result.numel())
            return result

    pixels = torch.zeros(8, 32, 32, 3, dtype=torch.uint8)
    address = pixels.untyped_storage().data_ptr()
    copy_patches(pixels.as_subclass(Watched).permute(0, 2, 1, 3), torch.tensor([3]), 8, backend="reference")
    assert Watched.copied == 8 * 8 * 3


@needs_module
@pytest.mark.parametrize("patch", [(2, 2, 2), (2, 2, 4), (1, 4, 4)])
def test_an_index_out_of_range_is_an_error(patch):
    pixels = torch.zeros(2, 4, 16, 16, 1)
    patches = pixels.numel() // prod(patch)
    copy_patches(pixels, torch.tensor([0, patches - 1]), patch)
    for bad in (-1, patches):
        with pytest.raises(IndexError):
            copy_patches(pixels, torch.tensor([0, bad]), patch)


def test_lines_of_patches_are_as_aligned_as_kernels_are_told():
    pixels = torch.zeros(2, 4, 32, 48, 3, dtype=torch.uint8)
    numbers = torch.arange(pixels.numel()).view(pixels.shape)
    assert alignment_of(pixels, (2, 16, 16)) == 16 and alignment_of(pixels, (1, 14, 14), 8) == 2
    for shape in ((1, 16, 16), (2, 8, 8), (2, 7, 14), (1, 4, 2)):
        for clips in (pixels, pixels[:, :, :28, :42], pixels[:, ::2]):
            alignment = alignment_of(clips, shape)
            view = numbers.as_strided(clips.shape, clips.stride())
            lines = view[:, :, :, : clips.shape[3] // shape[2] * shape[2]].unflatten(3, (-1, shape[2])).flatten(4)
            chunks = lines.flatten(0, 3).view(-1, alignment)
            assert (chunks == chunks[:, :1] + torch.arange(alignment)).all() and (chunks[:, 0] % alignment == 0).all()


def test_refuses_what_does_not_fit():
    pixels, index = torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.tensor([0])
    with pytest.raises(ValueError, match="multiples of 3"):
        gather_patches(pixels, index, 3)
    with pytest.raises(ValueError, match="frames, rows, columns"):
        gather_patches(pixels[None], index, 2)
    with pytest.raises(ValueError, match="multiples of"):
        gather_patches(pixels, index, (2, 2, 2))
    with pytest.raises(ValueError, match="int64"):
        gather_patches(pixels, index.int(), 2)
    with pytest.raises(ValueError, match="3 channels"):
        gather_patches(pixels, index, 2, mean=(0.5,))
    with pytest.raises(ValueError, match="copy_patches"):
        gather_patches(pixels.long(), index, 2)


def test_cost_counts_picked_patches_only():
    assert cost(10, 48).bytes == 10 * 48 * 5
