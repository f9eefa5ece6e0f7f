from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

import triton
from triton import language as tl

from omnitrunk.kernels import philox
from omnitrunk.kernels.sample_mask import sample_mask
from omnitrunk.kernels.sample_mask import triton_kernels as kernels


def drawn(seed, sizes, keep, device, samples=5):
    """Random counts, ours and the definition's choice."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(-1, keep // len(sizes) + 3, (samples, len(sizes)), generator=generator, dtype=torch.int32)
    positions = torch.randint(-(2**63), 2**63 - 1, (samples,), generator=generator)
    ours, theirs = (
        sample_mask(counts.to(where), sizes, keep, seed=seed, positions=positions.to(where), backend=backend)
        for where, backend in ((device, "triton"), ("cpu", "reference"))
    )
    return [tensor.cpu() for tensor in ours], theirs


@pytest.mark.parametrize(
    ("sizes", "keep"),
    [((1,), 1), ((3,), 0), ((16, 16, 16), 8), ((24, 6, 12), 30), ((7, 0, 3), 10), ((64,), 33), ((65, 4), 1), ((0,), 0)],
    ids=str,
)
def test_agrees_on_every_bit(seed, device, sizes, keep):
    for result, expected in zip(*drawn(seed, sizes, keep, device), strict=True):
        assert result.dtype == expected.dtype and torch.equal(result, expected)


@pytest.mark.parametrize(("sizes", "keep"), [((196, 196, 196), 98), ((196,), 49), ((1568,), 160)], ids=str)
def test_agrees_at_the_sizes_of_the_models(seed, device, sizes, keep):
    for result, expected in zip(*drawn(seed, sizes, keep, device, samples=2), strict=True):
        assert torch.equal(result, expected)


def test_no_samples_and_strided_counts(seed, device):
    counts = torch.randint(0, 4, (2, 6), dtype=torch.int32, device=device)
    positions = torch.arange(12, device=device)
    options = {"seed": seed, "backend": "triton"}
    ids, mask = sample_mask(counts.t()[:0], (5, 5), 4, positions=positions[:0], **options)
    assert ids.shape == (0, 4) and mask.shape == (0, 10)
    strided = sample_mask(counts.t(), (5, 5), 4, positions=positions[::2], **options)
    contiguous = sample_mask(counts.t().contiguous(), (5, 5), 4, positions=positions[::2].contiguous(), **options)
    assert torch.equal(strided[0], contiguous[0])


@triton.jit
def smallest_kernel(words, candidate, wanted, chosen, TILE: tl.constexpr):
    place = tl.arange(0, TILE)
    mine = tl.load(candidate + place) != 0
    result = kernels.smallest(tl.load(words + place), mine, tl.load(wanted))
    tl.store(chosen + place, result)


@pytest.mark.parametrize("wanted", [0, 1, 2, 5, 9, 20, 22])
@pytest.mark.parametrize("highest", [1, 3, 2**32])
def test_equal_words_are_chosen_in_order(seed, device, wanted, highest):
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, highest, (32,), generator=generator)
    words[torch.randperm(32, generator=generator)[:4]] = 2**32 - 1
    candidate = torch.randperm(32, generator=generator) < 22
    order = sorted(torch.arange(32)[candidate].tolist(), key=lambda i: (words[i].item(), i))
    chosen = torch.zeros(32, dtype=torch.bool, device=device)
    given = words.to(torch.uint32).to(device), candidate.to(device), torch.tensor(wanted, device=device).int()
    smallest_kernel[(1,)](*given, chosen, TILE=32)
    assert chosen.nonzero().flatten().tolist() == sorted(order[:wanted])


@pytest.mark.parametrize("seed_of_run", range(4))
def test_a_key_is_one_signed_integer(seed_of_run):
    key = kernels._key(seed_of_run, "mask.task")
    assert -(2**63) <= key < 2**63
    assert (key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF) == philox.key(seed_of_run, "mask.task")


def test_more_tokens_than_registers_hold_are_refused(device):
    counts, positions = torch.zeros(1, 1, dtype=torch.int32, device=device), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="4096"):
        sample_mask(counts, (4097,), 1, seed=0, positions=positions.to(device), backend="triton")


def test_the_launcher_is_a_sound_operator(device):
    counts, positions = torch.ones(2, 2, dtype=torch.int32, device=device), torch.arange(2, device=device)
    torch.library.opcheck(
        torch.ops.omnitrunk.draw_masks.default,
        (counts, positions, [5, 6], 4, 7),
        test_utils=("test_schema", "test_faketensor"),
    )
