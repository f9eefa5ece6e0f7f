"""LayerNorm alone, and with the residual addition and drop path before it."""

from __future__ import annotations

import torch
from torch import Tensor

from omnitrunk.bench.case import Case, random, ways, working_dtype
from omnitrunk.kernels import layer_norm
from omnitrunk.kernels.layer_norm import OPERATION, cost

SHAPES = {"ViT-B": (51_200, 768), "MAE decoder": (201_728, 512)}


def cases(device: str, quick: bool) -> list[Case]:
    """Plain and with a residual, encoder and decoder widths; on CPUs a sixteenth of the rows."""
    chosen = list(SHAPES.items())[: 1 if quick else None]
    return [_case(name, device, *shape, residual) for name, shape in chosen for residual in (False, True)]


def _case(name: str, device: str, rows: int, width: int, residual: bool) -> Case:
    rows, dtype = rows if device == "cuda" else rows // 16, working_dtype(device)

    def inputs(seed: int) -> tuple:
        shapes = [(rows, width), (width,), (width,), *([(rows, width)] if residual else [])]
        return tuple(random(4 * seed + i, *shape, dtype=dtype, device=device) for i, shape in enumerate(shapes))

    def run(backend: str) -> object:
        def call(x: Tensor, weight: Tensor, bias: Tensor, stream: Tensor | None = None) -> object:
            return layer_norm(x, weight, bias, residual=stream, backend=backend)

        return call

    peers = {"torch.compile": torch.compile(run("reference"))} if device == "cuda" else {}
    sizes = {"bytes_per_element": dtype.itemsize, "residual": residual}
    return Case(
        operation="layer_norm",
        shape=f"{name}{', residual' if residual else ''}: {rows} x {width}",
        inputs=inputs,
        contenders=ways(OPERATION, run, inputs(0), **peers),
        forward=cost(rows, width, **sizes),
        backward=cost(rows, width, **sizes, backward=True),
        definition=run("reference"),
    )
