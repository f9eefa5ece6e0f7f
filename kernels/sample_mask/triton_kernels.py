"""sample_mask on GPUs: one program per sample, with the noise of all its tokens in registers.

Nothing is sorted. The threshold below which the wanted number of words lies is found by bisection, as
csrc/sample_mask.cpp does; about log2(N) steps lead there. Places in the ascending result are a running sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu, philox
from omnitrunk.kernels.library import operator


@triton.jit
def random_words(key, position, BLOCKS: tl.constexpr):
    """The first words of a position, uint32 (4 * BLOCKS,); the order is that of kernels/philox.py."""
    block = tl.arange(0, BLOCKS)
    low, high = block * 0 + position.to(tl.int32), block * 0 + (position >> 32).to(tl.int32)
    first, second, third, fourth = tl.philox(key, block, low, high, block * 0)
    return tl.interleave(tl.interleave(first, third), tl.interleave(second, fourth))


@triton.jit
def smallest(words, candidate, wanted):
    """Which candidates have the `wanted` smallest words; of equal words the first, `wanted` at most all candidates."""
    # Always: `below` candidates, at most `wanted`, are less than `low`; more are less than `low` + 2 * `step`.
    low = tl.full((), 0, tl.uint32)
    step = tl.full((), 1 << 31, tl.uint32)
    below = wanted * 0
    while (below < wanted) & (step > 0):
        middle = low + step
        count = tl.sum((candidate & (words < middle)).to(tl.int32), 0)
        fits = count <= wanted
        low = tl.where(fits, middle, low)
        below = tl.where(fits, count, below)
        step = step >> 1
    chosen = candidate & (words < low)
    if below < wanted:
        equal = candidate & (words == low)
        chosen = chosen | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= wanted - below))
    return chosen


@triton.jit(do_not_specialize=["task_key", "fill_key"])
def sample_kernel(
    counts, positions, ids_keep, mask, tokens, keep, task_key, fill_key, SIZES: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + sample)
    token = tl.arange(0, TILE)
    words = random_words(task_key, position, TILE // 4)
    visible = token < 0
    start, total = 0, 0
    for task in tl.static_range(len(SIZES)):
        wanted = tl.load(counts + sample * len(SIZES) + task)
        wanted = tl.minimum(tl.maximum(wanted, 0), SIZES[task])
        visible = visible | smallest(words, (token >= start) & (token < start + SIZES[task]), wanted)
        start += SIZES[task]
        total += wanted
    if total != keep:
        # Either some of the visible tokens stay, or some of the masked ones join them.
        surplus = total > keep
        candidate = (token < tokens) & (visible == surplus)
        words = random_words(fill_key, position, TILE // 4)
        chosen = smallest(words, candidate, tl.where(surplus, keep, keep - total))
        visible = tl.where(candidate, chosen, visible)
    rank = tl.cumsum(visible.to(tl.int32), 0) - 1
    tl.store(ids_keep + sample * keep + rank, token.to(tl.int64), mask=visible)
    tl.store(mask + sample * tokens + token, visible == 0, mask=token < tokens)


@operator()
def draw_masks(counts: Tensor, positions: Tensor, sizes: list[int], keep: int, seed: int) -> tuple[Tensor, Tensor]:
    """Contiguous counts int32 (B, T), positions int64 (B,) -> ids_keep int64 (B, keep), mask bool (B, N)."""
    samples, tokens = len(positions), sum(sizes)
    ids_keep = gpu.new((samples, keep), torch.int64, positions.device)
    mask = gpu.new((samples, tokens), torch.bool, positions.device)
    gpu.launch(
        sample_kernel, (samples,),
        counts, positions, ids_keep, mask, tokens, keep, _key(seed, "mask.task"), _key(seed, "mask.fill"),
        SIZES=tuple(sizes), TILE=max(4, gpu.next_power_of_2(tokens)), **gpu.settings("sample_mask", "sample", tokens),
    )  # fmt: skip
    return ids_keep, mask


def _key(seed: int, purpose: str) -> int:
    """Both words of a stream's key in one integer, signed, so that every seed runs the same kernel."""
    low, high = philox.key(seed, purpose)
    return (low | high << 32) - (high >> 31 << 64)


def sample_mask(
    counts: Tensor, positions: Tensor, sizes: tuple[int, ...], keep: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The operation; see omnitrunk.kernels.sample_mask."""
    return draw_masks(counts.contiguous(), positions.contiguous(), list(sizes), keep, seed)


def shipped() -> dict[str, Callable[[], object]]:
    """1,024 samples of MAE, of MultiMAE with three inputs, of VideoMAE."""

    def run(sizes: tuple[int, ...], keep: int) -> None:
        counts = gpu.example(1024, len(sizes), dtype=torch.int32)
        sample_mask(counts, gpu.example(1024, dtype=torch.int64), sizes, keep, 0)

    return {
        "49 of 196": lambda: run((196,), 49),
        "98 of 3 x 196": lambda: run((196, 196, 196), 98),
        "160 of 1568": lambda: run((1568,), 160),
    }
