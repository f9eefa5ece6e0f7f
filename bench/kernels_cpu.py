"""Three host kernels against the PyTorch that people write: mask sampling, patch gathering, the optimizer.

The contenders of a case do the same job; their results are compared before they are timed. Each runs in a process of
its own, because large temporaries of one change the allocator under the others, and they take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omnitrunk.bench import harness, machine
from omnitrunk.bench.plain_multimae import IMAGENET_MEAN, IMAGENET_STD
from omnitrunk.bench.worker import Worker
from omnitrunk.kernels.adamw import adamw_
from omnitrunk.kernels.adamw import cost as adamw_cost
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.patches import cost as patches_cost
from omnitrunk.kernels.patches import gather_patches
from omnitrunk.kernels.sample_mask import cost as mask_cost
from omnitrunk.kernels.sample_mask import sample_mask

PATCHES, KEPT, PATCH, GRID = 196, 49, 16, 14
BETAS, EPS, LR, WEIGHT_DECAY, MAX_NORM, EMA_DECAY = (0.9, 0.95), 1e-8, 1e-4, 0.05, 1.0, 0.999


@dataclass(frozen=True, kw_only=True)
class Case:
    """One job, the ways to do it (the first is the baseline), and the least work it takes."""

    name: str
    contenders: dict[str, Callable[[], object]]
    least: Cost


def torch_masks(samples: int) -> tuple[Tensor, Tensor]:
    """Visible ids (B, kept) and mask (B, N) by argsort of noise and argsort of that, as in MAE (He et al. 2022)."""
    shuffle = torch.rand(samples, PATCHES).argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    mask = torch.ones(samples, PATCHES)
    mask[:, :KEPT] = 0
    return shuffle[:, :KEPT], mask.gather(1, restore)


def mask_case(samples: int) -> Case:
    """Choose 49 of 196 patches for every sample."""
    counts = torch.full((samples, 1), KEPT, dtype=torch.int32)
    positions = torch.arange(samples)
    return Case(
        name=f"sample_mask {samples} x ({KEPT} of {PATCHES})",
        contenders={
            "torch, two argsorts": lambda: torch_masks(samples),
            "omnitrunk": lambda: sample_mask(counts, (PATCHES,), KEPT, seed=0, positions=positions),
        },
        least=mask_cost(samples, PATCHES, keep=KEPT),
    )


def as_patches(pixels: Tensor) -> Tensor:
    """(B, H, W, C) -> (B * n, p * p * C), values in (row, column, channel) order."""
    tiles = pixels.unflatten(2, (GRID, PATCH)).unflatten(1, (GRID, PATCH))
    return tiles.transpose(2, 3).reshape(-1, PATCH * PATCH * pixels.shape[3])


def normalize_then_gather(pixels: Tensor, index: Tensor) -> Tensor:
    """All pixels are normalized, as data loaders do, and a quarter of the patches is kept."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return as_patches((pixels.float() / 255 - mean) / std).index_select(0, index)


def gather_then_normalize(pixels: Tensor, index: Tensor) -> Tensor:
    """The better order: patches are picked as bytes, and only those are normalized."""
    mean, std = torch.tensor(IMAGENET_MEAN).repeat(PATCH**2), torch.tensor(IMAGENET_STD).repeat(PATCH**2)
    return (as_patches(pixels).index_select(0, index).float() / 255 - mean) / std


def patch_case(images: int) -> Case:
    """Visible patches of uint8 images, normalized: 49 of the 196 of each 224 x 224 image."""
    rng = np.random.default_rng(0)
    side = GRID * PATCH
    pixels = torch.from_numpy(rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8))
    kept = rng.permuted(np.tile(np.arange(PATCHES), (images, 1)), axis=1)[:, :KEPT]
    index = torch.from_numpy((np.sort(kept, axis=1) + PATCHES * np.arange(images)[:, None]).ravel())
    contenders = {
        "torch, normalize then gather": lambda: normalize_then_gather(pixels, index),
        "torch, gather then normalize": lambda: gather_then_normalize(pixels, index),
        "omnitrunk": lambda: gather_patches(pixels, index, PATCH, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    }
    for contender in contenders.values():
        torch.testing.assert_close(contender(), normalize_then_gather(pixels, index), rtol=0, atol=1e-5)
    return Case(
        name=f"gather_patches {images} x ({KEPT} of {PATCHES}), {side} px",
        contenders=contenders,
        least=patches_cost(len(index), PATCH**2 * 3),
    )


def vit_shapes(width: int, depth: int) -> list[tuple[int, ...]]:
    """Parameter shapes of a ViT's blocks and a head of 1,000 classes."""
    block = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return block * depth + [(1000, width), (1000,)]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Parameters with gradients, their moving averages, and AdamW's two moments."""

    params: list[Tensor]
    averages: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]

    @classmethod
    def make(cls, shapes: Sequence[tuple[int, ...]]) -> Weights:
        """The same values on every call."""
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        copies = [[torch.zeros(shape) for shape in shapes] for _ in range(2)]
        averages = [param.detach().clone() for param in params]
        return cls(params=params, averages=averages, first=copies[0], second=copies[1])


def torch_update(weights: Weights, *, fused: bool) -> Callable[[], None]:
    """Clip, torch.optim.AdamW, moving average: its defaults, or its fused AdamW with a foreach average."""
    optimizer = torch.optim.AdamW(
        weights.params, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=fused or None
    )

    @torch.no_grad()
    def update() -> None:
        torch.nn.utils.clip_grad_norm_(weights.params, MAX_NORM)
        optimizer.step()
        if fused:
            torch._foreach_lerp_(weights.averages, weights.params, 1 - EMA_DECAY)
            return
        for average, param in zip(weights.averages, weights.params, strict=True):
            average.lerp_(param, 1 - EMA_DECAY)

    return update


def our_update(weights: Weights) -> Callable[[], None]:
    """The same in one call."""
    step = torch.zeros((), dtype=torch.int64)
    hyper = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY, "max_norm": MAX_NORM}

    @torch.no_grad()
    def update() -> None:
        grads = [param.grad for param in weights.params]
        lists = (weights.params, grads, weights.first, weights.second)
        adamw_(*lists, step, **hyper, emas=weights.averages, ema_decay=EMA_DECAY)

    return update


def adamw_case(width: int, depth: int) -> Case:
    """Clip by the global norm, AdamW, moving average of the weights."""
    shapes = vit_shapes(width, depth)
    sets = {name: Weights.make(shapes) for name in ("torch, default", "torch, fused and foreach", "omnitrunk")}
    plain, fused, ours = sets.values()
    updates = (torch_update(plain, fused=False), torch_update(fused, fused=True), our_update(ours))
    contenders = dict(zip(sets, updates, strict=True))
    for name, contender in contenders.items():
        contender()
        torch.testing.assert_close(sets[name].params, plain.params, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sets[name].averages, plain.averages, rtol=1e-5, atol=1e-6)
    count = sum(param.numel() for param in plain.params)
    return Case(
        name=f"clip, AdamW and EMA, {count / 1e6:.1f}M parameters",
        contenders=contenders,
        least=adamw_cost(count, ema=True),
    )


CASES: dict[str, Callable[[bool], Case]] = {
    "sample_mask": lambda quick: mask_case(32 if quick else 4096),
    "gather_patches": lambda quick: patch_case(2 if quick else 128),
    "adamw": lambda quick: adamw_case(*((16, 1) if quick else (384, 13))),
}
"""Name -> the case in its full or its trial size."""


def contender(case: str, name: str, quick: bool, threads: int) -> harness.Contender:
    """One contender of a case, for a process of its own."""
    torch.set_num_threads(threads)
    return harness.timed(CASES[case](quick).contenders[name])


def measure(case: str, names: Sequence[str], quick: bool, threads: int, rounds: int) -> harness.Samples:
    """Seconds of the contenders of a case, in turns."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(contender, case, name, quick, threads, threads=threads)) for name in names
        }
        return harness.interleave(workers, rounds, warmup=3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures every case, prints the table and the distance to the floor, and appends the rows to a file if asked."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    neighbors, table = machine.Neighbors(), []
    bandwidth = machine.memory_bandwidth(0.1 if options.quick else 2.0)
    for name in options.cases:
        case = CASES[name](options.quick)
        floor = {"bandwidth": bandwidth, "least_bytes": case.least.bytes, "floor_seconds": case.least.bytes / bandwidth}
        rounds = 3 if options.quick else options.rounds
        samples = measure(name, list(case.contenders), options.quick, options.threads, rounds)
        table += harness.rows(case.name, samples, machine.context(options.threads, neighbors) | floor)
    print(harness.markdown(table), f"Floor: the bytes that must move, at {bandwidth / 1e9:.1f} GB/s.", sep="\n\n")
    print(f"In the end, {machine.disturbance(table[-1])}.")
    for row in table:
        print(f"{row['benchmark']}, {row['contender']}: {row['median'] / row['floor_seconds']:.2f} times the floor")
    if options.json:
        harness.append_json(options.json, table)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="omnitrunk bench kernels", description=__doc__)
    options.add_argument("--cases", choices=CASES, nargs="+", default=list(CASES), help="what to measure")
    options.add_argument("--rounds", type=int, default=30, help="measured runs of each contender")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of each contender")
    options.add_argument("--quick", action="store_true", help="small sizes and three rounds: does it run?")
    options.add_argument("--json", type=Path, help="append the rows to this file, one JSON object a line")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
