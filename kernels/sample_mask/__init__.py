"""sample_mask: which tokens of each sample stay visible, a fixed number over several tasks.

counts (B, T) wishes a number of visible tokens for every task t with its N_t tokens. Each task offers the counts[b, t]
tokens with the smallest noise (all, where it wishes for more than it has). Then fresh noise orders all N tokens, the
offered ones first, and the first `keep` are visible: a surplus is dropped and a shortage filled at random.
Noise is keyed, a function of (seed, position) and of nothing else: 32-bit words of Philox streams "mask.task" and
"mask.fill". Equal words, one pair in four billion, are ordered by index, so that every backend agrees on every bit.
Sources: Bachmann et al. 2022, section 3.3; with one task, the random masking of He et al. 2022, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omnitrunk.kernels import gpu, native, philox
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation

WORDS = 1 << 32


def cost(samples: int, tokens: int, *, keep: int) -> Cost:
    """Least bytes: the result, 8 for every visible token and 1 of the mask for every token; noise stays on chip."""
    return Cost(bytes=samples * (8 * keep + tokens))


def select_tokens(
    counts: Tensor, sizes: Sequence[int], keep: int, task_noise: Tensor, fill_noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The selection from given noise, in the form of the released MultiMAE, which draws it from a generator.

    counts integer (B, T), sizes T numbers with sum N, noise (B, N) floating in [0, 1) or 32-bit words as int64
    -> ids_keep int64 (B, keep) in the order of the noise, ids_restore int64 (B, N) with the rank of every token in that
    order, mask int64 (B, N) with 0 for visible. A task offers the positions at which the permutation that sorts its
    noise has values below the count.
    """
    permutations = [noise.argsort(dim=1, stable=True) for noise in task_noise.split(list(sizes), 1)]
    offered = [permutation < count for permutation, count in zip(permutations, counts.split(1, 1), strict=True)]
    above = 1 if fill_noise.is_floating_point() else WORDS
    withheld = torch.cat(offered, 1).logical_not().to(fill_noise.dtype)
    ids_shuffle = (withheld * above + fill_noise).argsort(dim=1, stable=True)
    ids_restore = ids_shuffle.argsort(1)
    return ids_shuffle[:, :keep], ids_restore, (ids_restore >= keep).long()


def reference(counts: Tensor, positions: Tensor, sizes: tuple[int, ...], keep: int, seed: int) -> tuple[Tensor, Tensor]:
    """The definition by sorting; see the module's text."""
    where = positions.cpu().numpy()
    words = [
        torch.from_numpy(philox.uniform_bits(seed, purpose, where, sum(sizes)).astype("int64")).to(counts.device)
        for purpose in ("mask.task", "mask.fill")
    ]
    # The permutation that sorts the permutation that sorts the noise holds the rank of every token.
    ordered = [noise.argsort(dim=1, stable=True) for noise in words[0].split(list(sizes), 1)]
    ids_keep, _, mask = select_tokens(counts, sizes, keep, torch.cat(ordered, 1), words[1])
    return ids_keep.sort(1).values, mask.bool()


OPERATION = Operation("sample_mask", reference)


def _triton_refuses(_counts: Tensor, _positions: Tensor, sizes: tuple[int, ...], *_others: int) -> str | None:
    return None if sum(sizes) <= 4096 else "holds the tokens of a sample in registers, 4096 of them at most"


@OPERATION.backend(
    "triton",
    devices=gpu.DEVICES,
    why="chooses where the tokens are, in one launch",
    missing=gpu.missing,
    refuses=_triton_refuses,
)
def _triton(*call: Any) -> tuple[Tensor, Tensor]:
    from omnitrunk.kernels.sample_mask import triton_kernels

    return triton_kernels.sample_mask(*call)


@OPERATION.backend(
    "cpu", devices=("cpu",), why="finds thresholds by bisection instead of sorting", missing=native.missing_reason
)
def _cpu(counts: Tensor, positions: Tensor, sizes: tuple[int, ...], keep: int, seed: int) -> tuple[Tensor, Tensor]:
    return native.sample_mask(counts.contiguous(), sizes, keep, seed=seed, positions=positions.contiguous())


def sample_mask(
    counts: Tensor, sizes: Sequence[int], keep: int, *, seed: int, positions: Tensor, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Choose exactly `keep` visible tokens for every sample, on the host or on a GPU: the choice is the same.

    counts int32 (B, T), sizes T token counts with sum N, positions int64 (B,) the global positions of the samples, both
    on one device -> ids_keep int64 (B, keep) ascending, mask bool (B, N) with True for masked. Raises ValueError where
    the shapes do not fit together or `keep` is not in [0, N].
    """
    if counts.shape != (len(positions), len(sizes)):
        raise ValueError(
            f"sample_mask: counts {tuple(counts.shape)} do not fit {len(positions)} samples and {len(sizes)} tasks"
        )
    if not 0 <= keep <= sum(sizes):
        raise ValueError(f"sample_mask: cannot keep {keep} of {sum(sizes)} tokens")
    given = f"{counts.dtype} on {counts.device} and {positions.dtype} on {positions.device}"
    if (counts.dtype, positions.dtype) != (torch.int32, torch.int64) or counts.device != positions.device:
        raise ValueError(f"sample_mask takes int32 counts and int64 positions on one device, not {given}")
    return OPERATION.run(backend, counts, positions, tuple(sizes), keep, seed)
