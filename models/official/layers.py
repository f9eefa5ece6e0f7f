"""Parts of released state dicts that systems have in common, layer by layer; see models.official.parts."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from omnitrunk.models.audiomae import AudioMAEConfig
from omnitrunk.models.layers.blocks import QkvBias
from omnitrunk.models.mae import MAEConfig
from omnitrunk.models.official.parts import Part, SequenceTable


def same(official: str, ours: str, *shape: int) -> Part:
    """A tensor that is the same in both."""
    return reshaped(official, ours, shape, shape)


def reshaped(official: str, ours: str, shape: tuple[int, ...], rows: tuple[int, ...]) -> Part:
    """An official tensor of `shape` whose numbers, in the same order, are `rows` of ours."""
    return Part(official=official, ours=ours, shape=shape, rows=rows, factors=rows, order=tuple(range(len(rows))))


def linear(official: str, ours: str, rows: int, columns: int, *, bias: bool = True) -> Iterator[Part]:
    """A linear layer."""
    yield same(f"{official}.weight", f"{ours}.weight", rows, columns)
    if bias:
        yield same(f"{official}.bias", f"{ours}.bias", rows)


def norm(official: str, ours: str, width: int) -> Iterator[Part]:
    """A LayerNorm."""
    yield same(f"{official}.weight", f"{ours}.weight", width)
    yield same(f"{official}.bias", f"{ours}.bias", width)


def mlp(official: str, ours: str, width: int, mlp_ratio: float) -> Iterator[Part]:
    """Both layers of an MLP."""
    hidden = int(width * mlp_ratio)
    yield from linear(f"{official}.fc1", f"{ours}.fc1", hidden, width)
    yield from linear(f"{official}.fc2", f"{ours}.fc2", width, hidden)


def block(official: str, ours: str, width: int, mlp_ratio: float, bias: QkvBias = "qkv") -> Iterator[Part]:
    """A transformer block."""
    for name in ("norm1", "norm2"):
        yield from norm(f"{official}.{name}", f"{ours}.{name}", width)
    yield from linear(f"{official}.attn.qkv", f"{ours}.attn.qkv", 3 * width, width, bias=bias == "qkv")
    if bias == "qv":
        for name in ("q_bias", "v_bias"):
            yield same(f"{official}.attn.{name}", f"{ours}.attn.qkv.{name}", width)
    yield from linear(f"{official}.attn.proj", f"{ours}.attn.proj", width, width)
    yield from mlp(f"{official}.mlp", f"{ours}.mlp", width, mlp_ratio)


def blocks(official: str, ours: str, depth: int, width: int, mlp_ratio: float, bias: QkvBias = "qkv") -> Iterator[Part]:
    """A stack of transformer blocks."""
    for number in range(depth):
        yield from block(f"{official}.{number}", f"{ours}.{number}", width, mlp_ratio, bias)


def patch_projection(official: str, ours: str, width: int, channels: int, patch: tuple[int, ...]) -> Iterator[Part]:
    """A convolution whose kernel (D, C, *patch) is its stride; our columns have the channel last."""
    kernel = (width, channels, *patch)
    yield Part(
        official=f"{official}.weight",
        ours=f"{ours}.weight",
        shape=kernel,
        rows=(width, prod(patch) * channels),
        factors=kernel,
        order=(0, *range(2, len(kernel)), 1),
    )
    yield same(f"{official}.bias", f"{ours}.bias", width)


def position_table(
    official: str,
    ours: str,
    width: int,
    config: MAEConfig | AudioMAEConfig,
    *,
    class_row: bool,
    kind: type[SequenceTable] = SequenceTable,
) -> SequenceTable:
    """A table of positions of all tokens, the released one with a row for the class token, ours with or without."""
    shape = (1, 1 + config.total_tokens, width)
    return kind(
        official=official,
        ours=ours,
        shape=shape,
        rows=(config.total_tokens + class_row, width),
        factors=shape,
        order=(0, 1, 2),
        grid=config.grid,
        class_row=class_row,
    )
