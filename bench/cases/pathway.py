"""The joined linear layer: against the plain layer, which it should equal, and against combining in every call."""

from __future__ import annotations

from torch import Tensor

from omnitrunk.bench.case import Case, random, ways, working_dtype
from omnitrunk.kernels import linear
from omnitrunk.kernels.pathway_linear import OPERATION, cost, pathway_linear


def cases(device: str, quick: bool) -> list[Case]:
    """The first MLP layer of ViT-B, trained together (all gradients) and by the paired optimizer."""
    rows = 51_200 if device == "cuda" else 800 if quick else 1600
    return [_case(device, rows, 768, 3072, paired) for paired in (False, True)]


def _case(device: str, rows: int, width: int, outputs: int, paired: bool) -> Case:
    dtype = working_dtype(device)

    def inputs(seed: int) -> tuple:
        x, bias = (
            random(seed, rows, width, dtype=dtype, device=device),
            random(seed + 1, outputs, dtype=dtype, device=device),
        )
        weights = (random(seed + i, outputs, width, dtype=dtype, device=device, scale=0.03) for i in (2, 3))
        return x, *weights, random(seed + 4, 1, dtype=dtype, device=device), bias

    def run(backend: str) -> object:
        def call(x: Tensor, weight: Tensor, auxiliary: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
            return pathway_linear(x, weight, auxiliary, scale, bias, paired=paired, backend=backend)

        return call

    def plain(x: Tensor, weight: Tensor, auxiliary: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return linear(x, weight, bias)

    sizes = {"bytes_per_element": dtype.itemsize}
    return Case(
        operation="pathway_linear",
        shape=f"{rows} x {width} -> {outputs}{', paired' if paired else ''}",
        inputs=inputs,
        contenders=ways(OPERATION, run, inputs(0), **{"plain layer, without W'": plain}),
        forward=cost(rows, width, outputs, **sizes),
        backward=cost(rows, width, outputs, **sizes, backward=True),
        definition=run("reference"),
    )
