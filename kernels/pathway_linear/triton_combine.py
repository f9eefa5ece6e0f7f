"""combine_weights on GPUs: the layers of a model in one launch, found through a table of addresses on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.pathway_linear.combine import Pathway


@triton.jit
def combine_kernel(
    chunks, table, like_weight, like_result,
    AUXILIARIES: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    # A chunk is (row of the table, first element); a row is (elements, result, weight, W'_1, lambda_1, W'_2, ...).
    program = tl.program_id(0)
    row = table + tl.load(chunks + 2 * program) * (3 + 2 * AUXILIARIES)
    elements = tl.load(row)
    if ALIGNED:
        # All sizes and addresses are multiples of 16, which makes wide accesses possible.
        elements = tl.multiple_of(elements, 16)
    place = tl.multiple_of(tl.load(chunks + 2 * program + 1), CHUNK) + tl.arange(0, CHUNK)
    inside = place < elements
    total = tl.load(_pointer(row + 2, like_weight, ALIGNED) + place, mask=inside).to(tl.float32)
    for i in tl.static_range(AUXILIARIES):
        auxiliary = _pointer(row + 3 + 2 * i, like_weight, ALIGNED)
        scale = tl.load(tl.load(row + 4 + 2 * i).to(tl.pointer_type(tl.float32)))
        total += scale * tl.load(auxiliary + place, mask=inside).to(tl.float32)
    result = _pointer(row + 1, like_result, ALIGNED)
    tl.store(result + place, total.to(like_result.dtype.element_ty), mask=inside)


@triton.jit
def _pointer(place, like, ALIGNED: tl.constexpr):  # noqa: ANN202
    pointer = tl.load(place).to(like.dtype)
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


_tables: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
"""Addresses -> tables on the device, for as long as the addresses stay: those of a model in training never move."""


def combine(pathways: Sequence[Pathway], results: Sequence[Tensor]) -> None:
    """Write W + sum_i lambda_i W'_i of every pathway to its result; one launch for each number of auxiliaries."""
    groups: dict[tuple[int, torch.dtype, torch.dtype], list[int]] = {}
    for i, (pathway, result) in enumerate(zip(pathways, results, strict=True)):
        groups.setdefault((len(pathway.auxiliaries), pathway.weight.dtype, result.dtype), []).append(i)
    for (auxiliaries, *_dtypes), members in groups.items():
        settings = gpu.settings("pathway_linear", "combine", 0)
        rows = [_row(pathways[i], results[i]) for i in members]
        chunks, table = _on_device(rows, settings["CHUNK"], results[members[0]].device)
        first, aligned = members[0], all(number % 16 == 0 for row in rows for number in (*row[:3], *row[3::2]))
        gpu.launch(
            combine_kernel, (len(chunks),), chunks, table, pathways[first].weight, results[first],
            AUXILIARIES=auxiliaries, ALIGNED=aligned, **settings,
        )  # fmt: skip


def _row(pathway: Pathway, result: Tensor) -> tuple[int, ...]:
    pairs = zip(pathway.auxiliaries, pathway.scales, strict=True)
    joined = (tensor.data_ptr() for pair in pairs for tensor in pair)
    return result.numel(), result.data_ptr(), pathway.weight.data_ptr(), *joined


def _on_device(rows: list[tuple[int, ...]], chunk: int, device: torch.device) -> tuple[Tensor, Tensor]:
    key = (device.index or 0, chunk, *(number for row in rows for number in row))
    if key not in _tables:
        starts = [(i, start) for i, row in enumerate(rows) for start in range(0, row[0], chunk)]
        chunks = torch.tensor(starts, dtype=torch.int64).view(-1, 2)
        if len(_tables) == 16:
            _tables.pop(next(iter(_tables)))
        _tables[key] = chunks.to(device), torch.tensor(rows, dtype=torch.int64).to(device)
    return _tables[key]


def shipped() -> dict[str, Callable[[], object]]:
    """The joined layers of ViT-B in float32, into bfloat16, with one and with two auxiliary weights."""

    def run(auxiliaries: int) -> None:
        def one(*shape: int) -> Tensor:
            return torch.empty(shape, device="meta")

        others = tuple(one(3072, 768) for _ in range(auxiliaries)), tuple(one(1) for _ in range(auxiliaries))
        combine([Pathway(one(3072, 768), *others)], [gpu.example(3072, 768)])

    return {"one auxiliary": lambda: run(1), "two auxiliaries": lambda: run(2)}
