"""State dicts of the released MultiMAE, in and out: names, shapes and the order of values inside a row.

The release keeps patches channel by channel and in convolutions, gives every decoder its own context projection and
one embedding for each input; here patches are (row, column, channel), and what belongs together is one tensor. Both
functions read the same layout, so each undoes the other. Facts of the format: Bachmann et al. 2022, released weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from omnitrunk.models.config import MultiMAEConfig
from omnitrunk.models.modality import find_modality
from omnitrunk.models.positions import interpolate


@dataclass(frozen=True, kw_only=True)
class Part:
    """One tensor of the release, and the rows of one of ours that hold the same numbers.

    The official `shape` is seen as `factors`, whose axes then stand in `order`, and these are the numbers of `rows`.
    """

    official: str
    ours: str
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    factors: tuple[int, ...]
    order: tuple[int, ...]

    def accepts(self, shape: torch.Size) -> bool:
        """Whether an official tensor may have this shape."""
        return tuple(shape) == self.shape

    def to_rows(self, tensor: Tensor) -> Tensor:
        """The official tensor as our rows."""
        return tensor.reshape(self.factors).permute(self.order).reshape(self.rows)

    def to_official(self, rows: Tensor) -> Tensor:
        """Our rows as the official tensor."""
        permuted = rows.reshape([self.factors[axis] for axis in self.order])
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return permuted.permute(back).reshape(self.shape).contiguous()


@dataclass(frozen=True, kw_only=True)
class Table(Part):
    """A position table (1, D, h, w). The release resamples it to the grid in use, so a file's may have any h and w."""

    mode: str

    def accepts(self, shape: torch.Size) -> bool:
        """Whether an official tensor may have this shape."""
        return len(shape) == 4 and tuple(shape[:2]) == self.shape[:2] and 0 not in shape

    def to_rows(self, tensor: Tensor) -> Tensor:
        """The official table as our rows, resampled where its grid is another than ours."""
        rows, grid = tensor[0].flatten(1).T.contiguous(), tuple(tensor.shape[2:])
        return rows if grid == self.shape[2:] else interpolate(rows, grid, self.shape[2:], self.mode)


def from_official(state: Mapping[str, Tensor], config: MultiMAEConfig) -> dict[str, Tensor]:
    """The state dict of a `MultiMAE(config)` from a released one; types and devices stay.

    `state` is the pretraining model's complete state dict, under its official names. Raises ValueError for the first
    key that is missing, unexpected or of a wrong shape.
    """
    targets = _by_target(config)
    _check_keys(state, [part.official for parts in targets.values() for part in parts], "official state dict")
    for part in (part for parts in targets.values() for part in parts):
        if not part.accepts(state[part.official].shape):
            raise _wrong_shape(part.official, state[part.official], part.shape)
    return {name: torch.cat([part.to_rows(state[part.official]) for part in parts]) for name, parts in targets.items()}


def to_official(state: Mapping[str, Tensor], config: MultiMAEConfig) -> dict[str, Tensor]:
    """The released model's state dict from that of a `MultiMAE(config)`: the inverse of `from_official`.

    Raises ValueError for the first key that is missing, unexpected or of a wrong shape.
    """
    targets = _by_target(config)
    _check_keys(state, targets, "state dict")
    official: dict[str, Tensor] = {}
    for name, parts in targets.items():
        counts = [part.rows[0] for part in parts]
        if state[name].shape != (sum(counts), *parts[0].rows[1:]):
            raise _wrong_shape(name, state[name], (sum(counts), *parts[0].rows[1:]))
        for part, rows in zip(parts, state[name].split(counts), strict=True):
            if part.official not in official:
                official[part.official] = part.to_official(rows)
            elif not torch.equal(part.to_rows(official[part.official]), rows):
                raise ValueError(f"{name} must follow from {part.official}, which the release has once; restore it")
    return official


def layout(config: MultiMAEConfig) -> Iterator[Part]:
    """All tensors of a released model of these sizes; several of one target are its rows from top to bottom."""
    yield _same("global_tokens", "global_tokens", 1, config.global_tokens, config.width)
    for name in config.inputs:
        yield from _tokenizer(name, config)
    for number in range(config.depth):
        yield from _block(f"encoder.{number}", f"blocks.{number}", config.width, config)
    for output in config.outputs:
        yield from _decoder(f"output_adapters.{output}", f"decoders.{output}", output, config)


def _tokenizer(name: str, config: MultiMAEConfig) -> Iterator[Part]:
    modality, patch, width = find_modality(name), config.patch(name), config.width
    official, ours = f"input_adapters.{name}", f"tokenizers.{name}"
    channels = modality.channels
    if modality.kind == "classes":
        channels = config.class_embedding_width
        yield _same(f"{official}.class_emb.weight", f"{ours}.class_embedding", config.semseg_classes, channels)
    kernel = (width, channels, patch, patch)
    yield Part(
        official=f"{official}.proj.weight",
        ours=f"{ours}.weight",
        shape=kernel,
        rows=(width, patch * patch * channels),
        factors=kernel,
        order=(0, 2, 3, 1),
    )
    yield _same(f"{official}.proj.bias", f"{ours}.bias", width)
    grid = config.position_grid(name)
    yield _table(f"{official}.pos_emb", f"{ours}.position", width, grid, modality.faithful_interpolation)


def _block(official: str, ours: str, width: int, config: MultiMAEConfig) -> Iterator[Part]:
    for norm in ("norm1", "norm2"):
        yield from _norm(f"{official}.{norm}", f"{ours}.{norm}", width)
    yield from _linear(f"{official}.attn.qkv", f"{ours}.attn.qkv", 3 * width, width)
    yield from _linear(f"{official}.attn.proj", f"{ours}.attn.proj", width, width)
    yield from _mlp(f"{official}.mlp", f"{ours}.mlp", width, config)


def _decoder(official: str, ours: str, output: str, config: MultiMAEConfig) -> Iterator[Part]:
    width = config.decoder_width
    yield _row(f"{official}.mask_token", f"{ours}.mask_token", (1, 1, width), (width,))
    for name in config.inputs:
        yield _row(f"{official}.task_embeddings.{name}", f"{ours}.task_embedding", (1, 1, width), (1, width))
    yield from _decoder_tables(f"{official}.pos_emb", ours, output, config)
    yield from _linear(f"{official}.proj_context", "context", width, config.width)
    for norm in ("query_norm", "context_norm", "out_norm"):
        yield from _norm(f"{official}.{norm}", f"{ours}.{norm}", width)
    for name, rows in (("q", width), ("kv", 2 * width), ("proj", width)):
        yield from _linear(f"{official}.decoder.{name}", f"{ours}.cross.{name}", rows, width)
    yield from _mlp(f"{official}.mlp", f"{ours}.mlp", width, config)
    for number in range(config.decoder_depth):
        yield from _block(f"{official}.decoder_transformer.{number}", f"{ours}.blocks.{number}", width, config)
    yield from _out_projection(f"{official}.out_proj", f"{ours}.out", output, config)


def _decoder_tables(official: str, ours: str, output: str, config: MultiMAEConfig) -> Iterator[Part]:
    """A decoder's one table; ours keeps a second one where the inputs' grids are not the output's."""
    width = config.decoder_width
    yield _table(official, f"{ours}.position", width, config.position_grid(output), "bilinear")
    if any(config.grid(name) != config.grid(output) for name in config.inputs):
        for name in config.inputs:
            yield _table(official, f"{ours}.context_position", width, config.position_grid(name), "bilinear")


def _out_projection(official: str, ours: str, output: str, config: MultiMAEConfig) -> Iterator[Part]:
    patch, values, width = config.patch(output), config.patch_values(output), config.decoder_width
    channels = values // patch**2
    for name, last in (("weight", (width,)), ("bias", ())):
        yield Part(
            official=f"{official}.{name}",
            ours=f"{ours}.{name}",
            shape=(values, *last),
            rows=(values, *last),
            factors=(channels, patch, patch, *last),
            order=(1, 2, 0, 3)[: 3 + len(last)],
        )


def _linear(official: str, ours: str, rows: int, columns: int) -> Iterator[Part]:
    yield _same(f"{official}.weight", f"{ours}.weight", rows, columns)
    yield _same(f"{official}.bias", f"{ours}.bias", rows)


def _norm(official: str, ours: str, width: int) -> Iterator[Part]:
    yield _same(f"{official}.weight", f"{ours}.weight", width)
    yield _same(f"{official}.bias", f"{ours}.bias", width)


def _mlp(official: str, ours: str, width: int, config: MultiMAEConfig) -> Iterator[Part]:
    hidden = int(width * config.mlp_ratio)
    yield from _linear(f"{official}.fc1", f"{ours}.fc1", hidden, width)
    yield from _linear(f"{official}.fc2", f"{ours}.fc2", width, hidden)


def _same(official: str, ours: str, *shape: int) -> Part:
    return _row(official, ours, shape, shape)


def _row(official: str, ours: str, shape: tuple[int, ...], rows: tuple[int, ...]) -> Part:
    return Part(official=official, ours=ours, shape=shape, rows=rows, factors=rows, order=tuple(range(len(rows))))


def _table(official: str, ours: str, width: int, grid: tuple[int, int], mode: str) -> Table:
    return Table(
        official=official,
        ours=ours,
        shape=(1, width, *grid),
        rows=(grid[0] * grid[1], width),
        factors=(width, *grid),
        order=(1, 2, 0),
        mode=mode,
    )


def _by_target(config: MultiMAEConfig) -> dict[str, list[Part]]:
    """The parts of each of our tensors, in the order of its rows."""
    targets: dict[str, list[Part]] = {}
    for part in layout(config):
        targets.setdefault(part.ours, []).append(part)
    return targets


def _check_keys(state: Mapping[str, Tensor], expected: Collection[str], what: str) -> None:
    if missing := [key for key in expected if key not in state]:
        raise ValueError(f"the {what} lacks {missing[0]!r}{_more(missing)}; is it of another model size or task set?")
    if unexpected := [key for key in state if key not in set(expected)]:
        raise ValueError(
            f"the {what} has an unexpected {unexpected[0]!r}{_more(unexpected)}; remove it or fit the config"
        )


def _more(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""


def _wrong_shape(key: str, tensor: Tensor, expected: tuple[int, ...]) -> ValueError:
    return ValueError(f"{key} has the shape {tuple(tensor.shape)}, not {expected}; fit the config to the weights")
