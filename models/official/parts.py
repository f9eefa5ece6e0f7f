"""The tensors of released state dicts and those of ours that hold the same numbers: shapes and orders of values.

A layout is the list of parts of a model of given sizes. `read` and `write` go through the same layout, so that each
undoes the other, and account for every key of both sides.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.models.layers.positions import interpolate

Grids = tuple[tuple[int, ...], tuple[int, ...]]
"""The grid that a position table has, and the one that it is resampled for."""


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
    alias: str = ""
    """Another official name that a file may have it under."""

    def accepts(self, shape: torch.Size) -> bool:
        """Whether an official tensor may have this shape."""
        return tuple(shape) == self.shape

    def resized(self, _shape: torch.Size) -> Grids | None:
        """Both grids where an official tensor of this shape has to be resampled."""
        return None

    def to_rows(self, tensor: Tensor) -> Tensor:
        """The official tensor as our rows."""
        return tensor.reshape(self.factors).permute(self.order).reshape(self.rows)

    def to_official(self, rows: Tensor) -> Tensor:
        """Our rows as the official tensor."""
        permuted = rows.reshape([self.factors[axis] for axis in self.order])
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return permuted.permute(back).reshape(self.shape).contiguous()

    def put_into(self, official: Tensor, rows: Tensor) -> Tensor:
        """The official tensor, which another part gave already, with our rows in it; ValueError where they differ."""
        if not torch.equal(self.to_rows(official), rows):
            raise ValueError(f"{self.ours} must follow from {self.official}, which the release has once; restore it")
        return official


@dataclass(frozen=True, kw_only=True)
class Table(Part):
    """A position table (1, D, h, w). The release resamples it to the grid in use, so a file's may have any h and w."""

    mode: str

    def accepts(self, shape: torch.Size) -> bool:
        """Whether an official tensor may have this shape."""
        return len(shape) == 4 and tuple(shape[:2]) == self.shape[:2] and 0 not in shape

    def resized(self, shape: torch.Size) -> Grids | None:
        """Both grids where they differ."""
        return None if tuple(shape) == self.shape else (tuple(shape[2:]), self.shape[2:])

    def to_rows(self, tensor: Tensor) -> Tensor:
        """The official table as our rows, resampled where its grid is another than ours."""
        rows = tensor[0].flatten(1).T.contiguous()
        return _resampled(rows, self.resized(tensor.shape), self.mode)


@dataclass(frozen=True, kw_only=True)
class SequenceTable(Part):
    """A position table (1, 1 + n, D) of a square of patches, a row for the class token first; any square is accepted.

    Ours keeps the first row where `class_row` says so, and in a tensor of its own where `class_position` does (see
    ClassPosition); otherwise it must be 0, as released tables have it.
    """

    grid: tuple[int, int]
    class_row: bool
    class_position: bool = False

    def accepts(self, shape: torch.Size) -> bool:
        """Whether an official tensor may have this shape."""
        square = len(shape) == 3 and shape[1] > 1 and round((shape[1] - 1) ** 0.5) ** 2 == shape[1] - 1
        return tuple(shape) == self.shape or (square and (shape[0], shape[2]) == (1, self.shape[2]))

    def resized(self, shape: torch.Size) -> Grids | None:
        """Both grids where they differ."""
        side = round((shape[1] - 1) ** 0.5)
        return None if tuple(shape) == self.shape else ((side, side), self.grid)

    def to_rows(self, tensor: Tensor) -> Tensor:
        """The official table as our rows, its patches resampled where their grid is another than ours."""
        first, rows = tensor[0, :1], _resampled(tensor[0, 1:], self.resized(tensor.shape), "bicubic")
        if not (self.class_row or self.class_position) and first.any():
            raise ValueError(f"{self.official} moves the class token by its first row; only tables with 0 there fit")
        return torch.cat([first, rows]) if self.class_row else rows

    def to_official(self, rows: Tensor) -> Tensor:
        """Our rows as the official table."""
        return (rows if self.class_row else functional.pad(rows, (0, 0, 1, 0)))[None].contiguous()


@dataclass(frozen=True, kw_only=True)
class ClassPosition(Part):
    """The first row of a SequenceTable, as a tensor of its own; it stands behind the table in a layout."""

    def accepts(self, _shape: torch.Size) -> bool:
        """Whether an official tensor may have this shape; the table says."""
        return True

    def to_rows(self, tensor: Tensor) -> Tensor:
        """The first row (D,)."""
        return tensor[0, 0]

    def put_into(self, official: Tensor, rows: Tensor) -> Tensor:
        """The table with this first row."""
        return torch.cat([rows[None, None], official[:, 1:]], dim=1)


@dataclass(frozen=True, kw_only=True)
class Computed:
    """A tensor of ours that the release computes and does not store."""

    ours: str
    value: Tensor


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A tensor of the release that follows from the model's sizes; ours has none, and a file may lack it."""

    official: str
    value: Callable[[], Tensor]

    def expected(self, _shape: torch.Size) -> Tensor:
        """What a file must have, where its tensor has this shape."""
        return self.value()


AnyPart = Part | Computed | Derived
Layout = Iterable[AnyPart]


def read(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Our state dict from a released one; ValueError for the first key that is missing, unexpected or misshapen."""
    layout = list(layout)
    targets = _by_target(layout)
    state = _without_derived(state, layout)
    _check_keys(state, [part.official for parts in targets.values() for part in parts], "official state dict")
    for part in (part for parts in targets.values() for part in parts):
        if not part.accepts(state[part.official].shape):
            raise _wrong_shape(part.official, state[part.official], part.shape)
    found = {name: torch.cat([part.to_rows(state[part.official]) for part in parts]) for name, parts in targets.items()}
    like = next(iter(found.values()))
    return found | {part.ours: part.value.to(like) for part in layout if isinstance(part, Computed)}


def write(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The released state dict from ours; the inverse of `read`, with the same errors."""
    layout = list(layout)
    targets, official = _by_target(layout), {}
    computed = [part for part in layout if isinstance(part, Computed)]
    _check_keys(state, [*targets, *(part.ours for part in computed)], "state dict")
    for part in computed:
        if not torch.equal(state[part.ours], part.value.to(state[part.ours])):
            raise ValueError(f"{part.ours} is not the table that the release computes; it would be lost: restore it")
    for name, parts in targets.items():
        counts = [part.rows[0] for part in parts]
        if state[name].shape != (sum(counts), *parts[0].rows[1:]):
            raise _wrong_shape(name, state[name], (sum(counts), *parts[0].rows[1:]))
        for part, rows in zip(parts, state[name].split(counts), strict=True):
            there = official.get(part.official)
            official[part.official] = part.to_official(rows) if there is None else part.put_into(there, rows)
    return official | {part.official: part.value() for part in layout if isinstance(part, Derived)}


def _without_derived(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The released tensors but for those that follow from the sizes; ValueError where they would be others."""
    derived = {part.official: part for part in layout if isinstance(part, Derived)}
    for key in derived.keys() & state.keys():
        value = derived[key].expected(state[key].shape)
        if not torch.equal(state[key], value.to(state[key])):
            raise ValueError(f"{key} is not what follows from the sizes, {tuple(value.shape)}; fit the config")
    return {key: value for key, value in state.items() if key not in derived}


def _by_target(layout: Layout) -> dict[str, list[Part]]:
    """The parts of each of our tensors, in the order of its rows."""
    targets: dict[str, list[Part]] = {}
    for part in layout:
        if isinstance(part, Part):
            targets.setdefault(part.ours, []).append(part)
    return targets


def _resampled(rows: Tensor, grids: Grids | None, mode: str) -> Tensor:
    """Rows of a table on another grid, computed in float32 or wider."""
    if grids is None:
        return rows
    wide = torch.promote_types(rows.dtype, torch.float32)
    return interpolate(rows.to(wide), *grids, mode).to(rows.dtype)


def _check_keys(state: Mapping[str, Tensor], expected: Collection[str], what: str) -> None:
    known = set(expected)
    missing, unexpected = [key for key in expected if key not in state], [key for key in state if key not in known]
    if missing:
        near = _nearest(missing[0], unexpected or state)
        raise ValueError(f"the {what} lacks {missing[0]!r}{_more(missing)}{near}; is it of another size or task set?")
    if unexpected:
        near = _nearest(unexpected[0], expected)
        raise ValueError(
            f"the {what} has an unexpected {unexpected[0]!r}{_more(unexpected)}{near}; remove it or fit the config"
        )


def _nearest(key: str, others: Iterable[str]) -> str:
    found = difflib.get_close_matches(key, others, n=1, cutoff=0.0)
    return f", the nearest is {found[0]!r}" if found else ""


def _more(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""


def _wrong_shape(key: str, tensor: Tensor, expected: tuple[int, ...]) -> ValueError:
    return ValueError(f"{key} has the shape {tuple(tensor.shape)}, not {expected}; fit the config to the weights")
