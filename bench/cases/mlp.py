"""The two-layer perceptron and the linear layer, against torch's eager and compiled forms."""

from __future__ import annotations

import torch
from torch import Tensor

from omnitrunk.bench.case import Case, random, ways, working_dtype
from omnitrunk.kernels import linear, mlp
from omnitrunk.kernels.linear import OPERATION as LINEAR
from omnitrunk.kernels.linear import cost as linear_cost
from omnitrunk.kernels.mlp import OPERATION, cost

SHAPES = {"ViT-B": (51_200, 768, 3072), "MAE decoder": (201_728, 512, 2048)}


def mlp_cases(device: str, quick: bool) -> list[Case]:
    """Encoder and decoder; CPUs take a 32nd of the rows, a 64th in a quick run."""
    return [_mlp(name, device, _rows(device, quick, rows), *rest) for name, (rows, *rest) in _chosen(quick)]


def linear_cases(device: str, quick: bool) -> list[Case]:
    """The first layer of each."""
    return [_linear(name, device, _rows(device, quick, rows), *rest) for name, (rows, *rest) in _chosen(quick)]


def _chosen(quick: bool) -> list[tuple[str, tuple[int, int, int]]]:
    return list(SHAPES.items())[: 1 if quick else None]


def _rows(device: str, quick: bool, rows: int) -> int:
    return rows if device == "cuda" else rows // (64 if quick else 32)


def _mlp(name: str, device: str, rows: int, width: int, hidden: int) -> Case:
    dtype = working_dtype(device)

    def inputs(seed: int) -> tuple:
        shapes = ((rows, width), (hidden, width), (hidden,), (width, hidden), (width,))
        scales = (1.0, width**-0.5, 0.1, hidden**-0.5, 0.1)
        pairs = enumerate(zip(shapes, scales, strict=True))
        return tuple(random(5 * seed + i, *shape, dtype=dtype, device=device, scale=x) for i, (shape, x) in pairs)

    def run(backend: str) -> object:
        return lambda x, w1, b1, w2, b2: mlp(x, w1, b1, w2, b2, backend=backend)

    peers = {"torch.compile": torch.compile(run("reference"))} if device == "cuda" else {}
    return Case(
        operation="mlp",
        shape=f"{name}: {rows} x {width} x {hidden}",
        inputs=inputs,
        contenders=ways(OPERATION, run, inputs(0), **peers),
        forward=cost(rows, width, hidden, bytes_per_element=dtype.itemsize),
        backward=cost(rows, width, hidden, bytes_per_element=dtype.itemsize, backward=True),
        definition=run("reference"),
    )


def _linear(name: str, device: str, rows: int, inputs_: int, outputs: int) -> Case:
    dtype = working_dtype(device)

    def inputs(seed: int) -> tuple:
        shapes = ((rows, inputs_), (outputs, inputs_), (outputs,))
        return tuple(random(3 * seed + i, *shape, dtype=dtype, device=device) for i, shape in enumerate(shapes))

    def run(backend: str) -> object:
        def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return linear(x, weight, bias, backend=backend)

        return call

    return Case(
        operation="linear",
        shape=f"{name}: {rows} x {inputs_} -> {outputs}",
        inputs=inputs,
        contenders=ways(LINEAR, run, inputs(0)),
        forward=linear_cost(rows, inputs_, outputs, bytes_per_element=dtype.itemsize),
        backward=linear_cost(rows, inputs_, outputs, bytes_per_element=dtype.itemsize, backward=True),
        definition=run("reference"),
    )
