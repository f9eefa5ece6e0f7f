"""Moving tokens: picked, restored among mask tokens, and the choice of which stay visible."""

from __future__ import annotations

import torch
from torch import Tensor

from omnitrunk.bench.case import OURS, Case, random, ways, working_dtype
from omnitrunk.kernels import gather_tokens, sample_mask, scatter_tokens
from omnitrunk.kernels.gather_tokens import OPERATION as GATHER
from omnitrunk.kernels.gather_tokens import cost as gather_cost
from omnitrunk.kernels.sample_mask import cost as mask_cost
from omnitrunk.kernels.scatter_tokens import OPERATION as SCATTER
from omnitrunk.kernels.scatter_tokens import cost as scatter_cost

TOKENS, KEPT = 196, 49


def gather_cases(device: str, quick: bool) -> list[Case]:
    """The visible quarter of ViT-B's tokens."""
    samples, width, dtype = _samples(device, quick), 768, working_dtype(device)

    def inputs(seed: int) -> tuple:
        return random(seed, samples * TOKENS, width, dtype=dtype, device=device), kept_rows(seed, samples, device)

    def run(backend: str) -> object:
        return lambda tokens, index: gather_tokens(tokens, index, backend=backend)

    sizes = {"picked": samples * KEPT, "bytes_per_element": dtype.itemsize}
    return [
        Case(
            operation="gather_tokens",
            shape=f"{samples} x {KEPT} of {TOKENS} rows of {width}",
            inputs=inputs,
            contenders=ways(GATHER, run, inputs(0)),
            forward=gather_cost(samples * TOKENS, width, **sizes),
            backward=gather_cost(samples * TOKENS, width, **sizes, backward=True),
            definition=run("reference"),
        )
    ]


def scatter_cases(device: str, quick: bool) -> list[Case]:
    """MAE's decoder input: visible tokens at their places, mask tokens elsewhere, positions added."""
    samples, width, dtype = _samples(device, quick), 512, working_dtype(device)

    def inputs(seed: int) -> tuple:
        shapes = ((samples * KEPT, width), (width,), (TOKENS, width))
        rows = (random(3 * seed + i, *shape, dtype=dtype, device=device) for i, shape in enumerate(shapes))
        return kept_rows(seed, samples, device), *rows

    def run(backend: str) -> object:
        def call(index: Tensor, rows: Tensor, fill: Tensor, table: Tensor) -> Tensor:
            return scatter_tokens(rows, index, samples * TOKENS, fill=fill, table=table, backend=backend)

        return call

    sizes = {"size": samples * TOKENS, "bytes_per_element": dtype.itemsize}
    return [
        Case(
            operation="scatter_tokens",
            shape=f"{samples} x {KEPT} into {TOKENS} rows of {width}",
            inputs=inputs,
            contenders=ways(SCATTER, run, inputs(0)),
            forward=scatter_cost(samples * KEPT, width, **sizes),
            backward=scatter_cost(samples * KEPT, width, **sizes),
            definition=run("reference"),
        )
    ]


def mask_cases(device: str, quick: bool) -> list[Case]:
    """Choose 49 of 196 patches for every sample; the peer draws other random numbers."""
    samples = 256 if quick else 4096

    def inputs(seed: int) -> tuple:
        counts = torch.full((samples, 1), KEPT, dtype=torch.int32, device=device)
        return counts, seed * samples + torch.arange(samples, device=device)

    def ours(counts: Tensor, positions: Tensor) -> object:
        return sample_mask(counts, (TOKENS,), KEPT, seed=0, positions=positions)

    return [
        Case(
            operation="sample_mask",
            shape=f"{samples} x {KEPT} of {TOKENS}",
            inputs=inputs,
            contenders={OURS: ours, "torch, two argsorts": argsort_masks},
            forward=mask_cost(samples, TOKENS, keep=KEPT),
        )
    ]


def _samples(device: str, quick: bool) -> int:
    return 1024 if device == "cuda" else 16 if quick else 64


def kept_rows(seed: int, samples: int, device: str) -> Tensor:
    """A random quarter of each sample's rows, ascending, as rows of the whole buffer."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(samples, TOKENS, generator=generator).argsort(1)[:, :KEPT].sort(1).values
    return (kept + TOKENS * torch.arange(samples)[:, None]).flatten().to(device)


def argsort_masks(counts: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Visible ids (B, kept) and mask (B, N) by argsort of noise and argsort of that (He et al. 2022)."""
    shuffle = torch.rand(len(positions), TOKENS, device=positions.device).argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    mask = torch.ones(len(positions), TOKENS, device=positions.device)
    mask[:, :KEPT] = 0
    return shuffle[:, :KEPT], mask.gather(1, restore)
