"""Checks that the configurations of all systems make of their sizes: one line, with a value that would do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width, from both or from one number for a square."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def check_heads(width_name: str, width: int, heads_name: str, heads: int) -> None:
    """ValueError unless `heads` divides `width`, and 4 as well."""
    if width < 4 or width % 4:
        raise ValueError(
            f"{width_name} = {width} must be a multiple of 4, for the position tables; try {width + -width % 4}"
        )
    if heads < 1 or width % heads:
        fits = max(count for count in range(1, min(max(heads, 1), width) + 1) if width % count == 0)
        raise ValueError(f"{heads_name} = {heads} does not divide {width_name} = {width}; try {fits}")


def check_divides(field: str, sides: tuple[int, ...], units: tuple[int, ...], what: str = "patches") -> None:
    """ValueError unless every side is a positive multiple of its unit."""
    if any(side < unit or side % unit for side, unit in zip(sides, units, strict=True)):
        nearest = tuple(max(unit, round(side / unit) * unit) for side, unit in zip(sides, units, strict=True))
        size = units[0] if len(set(units)) == 1 else units
        raise ValueError(f"{field} = {sides} does not divide into {what} of {size} pixels; try {nearest}")


def check_rate(field: str, rate: float) -> None:
    """ValueError unless 0 <= rate < 1."""
    if not 0 <= rate < 1:
        raise ValueError(f"{field} = {rate} must lie in 0..1, 1 excluded; 0 switches it off")


def check_least(config: object, least: Mapping[str, float]) -> None:
    """ValueError unless every named field of `config` has its least value or more."""
    for field, smallest in least.items():
        if getattr(config, field) < smallest:
            raise ValueError(f"{field} = {getattr(config, field)} is too small; use {smallest} or more")


def check_mixing(config: Any) -> None:
    """ValueError where `mixup`, `cutmix` and `mixed` of a configuration have no meaning."""
    check_least(config, {"mixup": 0, "cutmix": 0})
    if not 0 < config.mixed <= 1:
        raise ValueError(f"mixed = {config.mixed} must lie in 0..1, 0 excluded; mixup = 0 and cutmix = 0 mix nothing")
    if config.mixed < 1 and not config.mixes:
        raise ValueError(f"mixed = {config.mixed} mixes nothing while mixup and cutmix are 0; set one, or mixed to 1")


def choose_dataset(known: Iterable[str], dataset: str | None) -> str:
    """The data set that is meant, which may be left out where only one is known; else ValueError with the choices."""
    names = tuple(known)
    if dataset is None and len(names) == 1:
        return names[0]
    if dataset not in names:
        said = "no data set was named" if dataset is None else f"the model knows no data set {dataset!r}"
        raise ValueError(f"{said}; choose one of {', '.join(names)}")
    return dataset
