"""Attention in shifted windows, at the first stage of Swin-T on images and the second of Video Swin-T on clips."""

from __future__ import annotations

from omnitrunk.bench import plain_windows
from omnitrunk.bench.case import Case, Run, random, ways, working_dtype
from omnitrunk.kernels import window_attention as operation
from omnitrunk.kernels.window_attention import OPERATION, cost, cut

SHAPES = {
    "Swin-T image, stage 1, shifted": (256, (1, 56, 56), (8, 7, 7), (4, 3, 3), 3),
    "Swin-T image, stage 1": (256, (1, 56, 56), (8, 7, 7), (0, 0, 0), 3),
    "Swin-T image, stage 3, shifted": (256, (1, 14, 14), (8, 7, 7), (4, 3, 3), 12),
    "Video Swin-T, stage 2, shifted": (32, (16, 28, 28), (8, 7, 7), (4, 3, 3), 6),
    "Omnivore video, stage 1, shifted": (8, (16, 56, 56), (16, 7, 7), (8, 3, 3), 4),
}
"""Name -> B, (T, H, W), window, shift, heads on a GPU, of width 32; CPUs take a 32nd of the batch."""
WIDTH = 32


def cases(device: str, quick: bool) -> list[Case]:
    """All shapes; only the first in a quick run."""
    chosen = list(SHAPES.items())[: 1 if quick else None]
    return [_case(name, device, *shape) for name, shape in chosen]


def _case(
    name: str,
    device: str,
    batch: int,
    size: tuple[int, int, int],
    window: tuple[int, int, int],
    shift: tuple[int, int, int],
    heads: int,
) -> Case:
    batch = batch if device == "cuda" else max(1, batch // 32)
    dtype, windows = working_dtype(device), cut(size, window, shift)

    def inputs(seed: int) -> tuple:
        shapes = (batch, *size, 3, heads, WIDTH), (windows.table_rows, heads)
        return tuple(random(2 * seed + i, *shape, dtype=dtype, device=device) for i, shape in enumerate(shapes))

    def run(backend: str) -> Run:
        return lambda qkv, table: operation(qkv, table, window=window, shift=shift, backend=backend)

    def textbook(attention: str) -> Run:
        return lambda qkv, table: plain_windows.window_attention(
            qkv, table, window, shift, WIDTH**-0.5, attention=attention
        )

    sizes = {"heads": heads, "head_width": WIDTH, "bytes_per_element": dtype.itemsize}
    peers = {f"textbook, {attention}": textbook(attention) for attention in plain_windows.ATTENTIONS}
    return Case(
        operation="window_attention",
        shape=f"{name}: B {batch}, {windows.number} windows of {windows.tokens}, H {heads}, d {WIDTH}",
        inputs=inputs,
        contenders=ways(OPERATION, run, inputs(0), **peers),
        forward=cost(windows, batch, **sizes),
        backward=cost(windows, batch, **sizes, backward=True),
        definition=run("reference"),
    )
