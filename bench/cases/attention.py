"""Attention at the lengths of masked pretraining: short encoders, decoders on all tokens, cross-attention."""

from __future__ import annotations

from omnitrunk.bench.case import Case, random, ways, working_dtype
from omnitrunk.kernels import attention as operation
from omnitrunk.kernels.attention import OPERATION, cost

SHAPES = {
    "MAE ViT-B encoder": (1024, 50, 50, 12, 64),
    "MultiMAE encoder": (512, 99, 99, 12, 64),
    "VideoMAE encoder": (128, 160, 160, 12, 64),
    "MAE decoder": (1024, 197, 197, 16, 32),
    "MultiMAE cross-attention": (512, 196, 98, 8, 32),
    "Point-MAE encoder": (512, 26, 26, 6, 64),
    "VideoMAE decoder": (32, 1568, 1568, 6, 64),
}
"""Name -> B, N, S, H, d on a GPU; CPUs take a sixteenth of the batch, and a quarter of that in a quick run."""


def cases(device: str, quick: bool) -> list[Case]:
    """All shapes; only the first in a quick run."""
    chosen = list(SHAPES.items())[: 1 if quick else None]
    return [_case(name, device, quick, *shape) for name, shape in chosen]


def _case(name: str, device: str, quick: bool, batch: int, n: int, s: int, heads: int, width: int) -> Case:
    batch = batch if device == "cuda" else max(1, batch // (64 if quick else 16))
    dtype = working_dtype(device)

    def inputs(seed: int) -> tuple:
        shapes = ((batch, n, heads, width), (batch, s, heads, width), (batch, s, heads, width))
        return tuple(random(3 * seed + i, *shape, dtype=dtype, device=device) for i, shape in enumerate(shapes))

    sizes = {"heads": heads, "head_width": width, "bytes_per_element": dtype.itemsize}
    return Case(
        operation="attention",
        shape=f"{name}: B {batch}, N {n}, S {s}, H {heads}, d {width}",
        inputs=inputs,
        contenders=ways(OPERATION, lambda backend: lambda q, k, v: operation(q, k, v, backend=backend), inputs(0)),
        forward=cost(batch * n * s, batch * n, batch * s, **sizes),
        backward=cost(batch * n * s, batch * n, batch * s, **sizes, backward=True),
        definition=lambda q, k, v: operation(q, k, v, backend="reference"),
    )
