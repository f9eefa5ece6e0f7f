"""adamw_ on GPUs: tables of addresses on the device, and four launches that wait for nothing.

The tables are built once and found again by the addresses in them. The learning rate changes from step to step: as a
number it travels with the launch; a CUDA graph, which keeps the arguments of its launches, takes it from a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.adamw import triton_kernels as kernels
from omnitrunk.kernels.adamw.rule import Pathway, Rule

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
KEPT_TABLES = 16


@dataclass(frozen=True)
class Table:
    """Tables as triton_kernels.py describes them, their sources on the host, and how many rows and pathways there are.

    A captured CUDA graph copies from the sources again at every replay: they live as long as the table.
    """

    chunks: Tensor
    addresses: Tensor
    factors: Tensor
    sources: tuple[Tensor, ...]
    rows: int
    joined: int


_tables: dict[tuple, Table] = {}
_captured: list[Table] = []
"""Tables that a CUDA graph refers to, and that therefore stay."""


def refuses(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor],
    step: Tensor,
    rule: Rule,
    casts: Sequence[Tensor | None] = (),
    pathways: Sequence[Pathway] = (),
) -> str | None:
    """What stands against a call, or None."""
    device = params[0].device
    if step.device != device or (isinstance(rule.lr, Tensor) and rule.lr.device != device):
        return "takes the step count, and a learning rate that is a tensor, on the device of the parameters"
    for tensors, name in ((params, "parameters"), (exp_avgs, "moments"), (exp_avg_sqs, "moments"), (emas, "averages")):
        if _odd(tensors, device, (torch.float32,)):
            return f"updates contiguous float32 {name} on one device"
    for tensors, name in (
        (grads, "gradients"),
        (casts, "casts"),
        (_frozen(pathways), "frozen weights"),
        (_effective(pathways), "effective weights"),
    ):
        dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
        if len(dtypes) > 1 or _odd(tensors, device, TYPES):
            return f"takes contiguous {name} on one device, of one dtype among float32, bfloat16 and float16"
    return None


def _odd(tensors: Iterable[Tensor | None], device: torch.device, dtypes: Iterable[torch.dtype]) -> bool:
    given = (tensor for tensor in tensors if tensor is not None)
    return not all(t.dtype in dtypes and t.is_contiguous() and t.device == device for t in given)


def _frozen(pathways: Sequence[Pathway]) -> list[Tensor]:
    return [part for pathway in pathways for part in pathway.auxiliaries if isinstance(part, Tensor)]


def _effective(pathways: Sequence[Pathway]) -> list[Tensor]:
    return [pathway.effective for pathway in pathways if pathway.effective is not None]


def _type(tensors: Iterable[Tensor | None]) -> tl.dtype | None:
    """What Triton calls the dtype that all tensors share."""
    return next((TYPES[tensor.dtype] for tensor in tensors if tensor is not None), None)


def adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor],
    step: Tensor,
    rule: Rule,
    casts: Sequence[Tensor | None] = (),
    pathways: Sequence[Pathway] = (),
) -> tuple[Tensor, Tensor]:
    """The operation on tensors that `refuses` lets pass; see omnitrunk.kernels.adamw."""
    device, slots = params[0].device, max((len(pathway.scales) for pathway in pathways), default=0)
    settings = {name: gpu.settings("adamw", name, 0) for name in ("table", "partials", "sums", "finalize", "update")}
    rows, sizes = _rows(params, grads, (exp_avgs, exp_avg_sqs, emas, casts), pathways, slots)
    table = _on_device(rows, sizes, _factors(grads, rule, pathways, slots), len(pathways), device, **settings["table"])
    partials = gpu.new((len(table.chunks), 1 + slots), torch.float32, device)
    sums = gpu.new((table.rows, 1 + slots), torch.float64, device)
    scales = gpu.new((table.joined, slots, 2), torch.float32, device)
    state, norm = gpu.new((5,), torch.float32, device), gpu.new((), torch.float32, device)
    skipped = gpu.new((), torch.bool, device)
    types = {"GRADIENT": _type(grads), "FROZEN": _type(_frozen(pathways)) or tl.float32, **settings["table"]}
    options = {"SLOTS": slots, "AVERAGE": bool(emas), "CAST": _type(casts)}
    beta1, beta2 = rule.betas
    # As floats: Triton would compile a kernel anew for an integer 1.
    decays = tuple(map(float, (1 - beta1, beta2, 1 - beta2, rule.eps, 1 - rule.ema_decay)))
    lr = rule.lr if isinstance(rule.lr, Tensor) else float(rule.lr)
    max_norm = None if rule.max_norm is None else float(rule.max_norm)
    gpu.launch(
        kernels.partials_kernel, (len(table.chunks),), table.chunks, table.addresses, partials,
        SLOTS=slots, **types, **settings["partials"],
    )  # fmt: skip
    gpu.launch(kernels.sums_kernel, (table.rows,), table.addresses, partials, sums, SLOTS=slots, **settings["sums"])
    gpu.launch(
        kernels.finalize_kernel, (1,),
        table.addresses, table.factors, sums, scales, state, step, norm, skipped, lr, table.rows, table.joined,
        _log(beta1), _log(beta2), max_norm, *decays,
        LR_ON_DEVICE=isinstance(rule.lr, Tensor), **options, **settings["finalize"],
    )  # fmt: skip
    gpu.launch(
        kernels.update_kernel, (len(table.chunks) * settings["table"]["CHUNK"] // settings["update"]["BLOCK"],),
        table.chunks, table.addresses, table.factors, scales, state, *decays,
        EFFECTIVE=_type(_effective(pathways)), **types, **options, **settings["update"],
    )  # fmt: skip
    # Autograd and the kept combinations of pathway_linear cannot see the writes.
    written = [*params, *exp_avgs, *exp_avg_sqs, *emas, *(x for x in casts if x is not None), *_effective(pathways)]
    torch.autograd.graph.increment_version(written)
    return norm, skipped


def _log(beta: float) -> float:
    return math.log(beta) if beta else -math.inf


def _leaders(grads: Sequence[Tensor | None], pathways: Sequence[Pathway]) -> list[int]:
    """Places of the weights that own a gradient: those of pathways in their order, then all others."""
    joined = [pathway.weight for pathway in pathways]
    taken = set(joined)
    return [*joined, *(place for place, grad in enumerate(grads) if grad is not None and place not in taken)]


def _rows(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    others: Sequence[Sequence[Tensor | None]],
    pathways: Sequence[Pathway],
    slots: int,
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Rows of the table of addresses without their chunks, and how many elements each row has."""
    nothing = [None] * len(params)
    parameters = list(zip(*map(_addresses, (params, *(tensors or nothing for tensors in others))), strict=True))
    empty = (0,) * kernels.WORDS.value
    gradients, rows = _addresses(grads), []
    leaders = _leaders(grads, pathways)
    for place, pathway in zip(leaders, [*pathways, *[None] * (len(leaders) - len(pathways))], strict=True):
        effective, joined = 0, ()
        if pathway is not None:
            effective = 0 if pathway.effective is None else pathway.effective.data_ptr()
            for auxiliary, scale in zip(pathway.auxiliaries, pathway.scales, strict=True):
                frozen = isinstance(auxiliary, Tensor)
                joined += (auxiliary.data_ptr(), *empty[1:]) if frozen else parameters[auxiliary]
                joined += parameters[scale] if isinstance(scale, int) else empty
        padding = (2 * slots * len(empty) - len(joined)) * (0,)
        rows.append((gradients[place], effective, *parameters[place], *joined, *padding))
    return rows, [params[place].numel() for place in leaders]


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _factors(
    grads: Sequence[Tensor | None], rule: Rule, pathways: Sequence[Pathway], slots: int
) -> list[tuple[float, ...]]:
    """Rows of the table of factors."""
    pairs = list(zip(rule.lr_scales, rule.weight_decays, strict=True))
    rows = [pairs[place] + (0.0,) * 5 * slots for place in _leaders(grads, pathways)]
    for i, pathway in enumerate(pathways):
        numbers, fixed = pairs[pathway.weight], ()
        for auxiliary, scale in zip(pathway.auxiliaries, pathway.scales, strict=True):
            numbers += pairs[auxiliary] if isinstance(auxiliary, int) else (0.0, 0.0)
            numbers += pairs[scale] if isinstance(scale, int) else (0.0, 0.0)
            fixed += (0.0 if isinstance(scale, int) else scale,)
        missing = slots - len(fixed)
        rows[i] = (*numbers, *(0.0,) * 4 * missing, *fixed, *(0.0,) * missing)
    return rows


def _on_device(
    rows: list[tuple[int, ...]],
    sizes: list[int],
    factors: list[tuple[float, ...]],
    joined: int,
    device: torch.device,
    *,
    CHUNK: int,
) -> Table:
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    key = (device, CHUNK, joined, *rows, *sizes, *factors)
    table = _tables.get(key)
    if table is None:
        table = _build(rows, sizes, factors, joined, device, CHUNK, pinned=capturing)
        if not capturing:
            if len(_tables) == KEPT_TABLES:
                _tables.pop(next(iter(_tables)))
            _tables[key] = table
    if capturing:
        _captured.append(table)
    return table


def _build(
    rows: list[tuple[int, ...]],
    sizes: list[int],
    factors: list[tuple[float, ...]],
    joined: int,
    device: torch.device,
    chunk: int,
    *,
    pinned: bool,
) -> Table:
    chunks, addresses = [], []
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        aligned = all(address % 16 == 0 for address in row)
        counts = [min(chunk, size - start) for start in range(0, size, chunk)]
        addresses.append((len(chunks), len(chunks) + len(counts), *row))
        chunks += [(number, i, count, int(aligned and count % 8 == 0)) for i, count in enumerate(counts)]
    sources = (
        torch.tensor(chunks, dtype=torch.int64).view(-1, 4),
        torch.tensor(addresses, dtype=torch.int64),
        torch.tensor(factors, dtype=torch.float32),
    )
    if pinned:
        # What a graph copies, it copies at every replay, which only works from page-locked memory.
        sources = tuple(source.pin_memory() for source in sources)
    # From ordinary memory, and yet without a wait: the driver takes what it copies before it returns.
    return Table(*(source.to(device, non_blocking=True) for source in sources), sources, len(rows), joined)


def shipped() -> dict[str, Callable[[], object]]:
    """The matrices and vectors of a block of ViT-B; with matrices joined to one that learns, and a frozen one too."""

    def run(gradients: torch.dtype, joined: int) -> None:
        matrices, vectors = [(2304, 768), (768, 768), (3072, 768), (768, 3072)], [(3072,), *[(768,)] * 7]
        own = [*matrices, *vectors]
        shapes = own if joined == 0 else [*own, *matrices, *[()] * joined * len(matrices)]
        params, *state = ([gpu.example(*shape, dtype=torch.float32) for shape in shapes] for _ in range(4))
        nothing = [None] * (len(shapes) - len(own))
        grads = [*(gpu.example(*shape, dtype=gradients) for shape in own), *nothing]
        casts = [*(gpu.example(*shape) for shape in own), *nothing]
        pathways = [
            Pathway(
                weight=i,
                auxiliaries=(len(own) + i, gpu.example(*shape))[:joined],
                scales=tuple(range(len(own) + 4 + i, len(shapes), 4)),
                effective=gpu.example(*shape),
            )
            for i, shape in enumerate(matrices if joined else ())
        ]
        rule = Rule(
            lr=1e-3,
            lr_scales=[1.0] * len(shapes),
            weight_decays=[0.05] * len(shapes),
            betas=(0.9, 0.95),
            eps=1e-8,
            max_norm=1.0,
            ema_decay=0.999,
        )
        adamw(params, grads, *state, torch.zeros((), device="meta"), rule, casts, pathways)

    return {
        "average and cast": lambda: run(torch.float32, 0),
        "average, cast, joined": lambda: run(torch.float32, 1),
        "average, cast, joined and frozen, bf16 gradients": lambda: run(torch.bfloat16, 2),
    }
