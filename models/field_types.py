"""Values of a section inside a section, as recipes and command lines give them, against the fields of its dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def check_values(section: str, kind: type[Any], values: Mapping[str, Any]) -> None:
    """ValueError for the first value that is none of a field of the dataclass `kind`; a list passes for a tuple."""
    types = _types(kind)
    for name, value in values.items():
        if name not in types:
            raise ValueError(f"{section}.{name} is no field of {kind.system}; take it out")
        if not _fits(value, types[name]):
            raise ValueError(f"{section}.{name} = {value!r} must be {_words(types[name])}")


@cache
def _types(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type. A whole number is a number, too; true and false are none."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is dict:
        return isinstance(value, Mapping) and all(_fits(one, inner[1]) for one in value.values())
    if origin is tuple:
        return isinstance(value, (list, tuple)) and _all_fit(value, inner)
    return type(value) in ((int, float) if kind is float else (kind,))


def _all_fit(values: list[Any] | tuple[Any, ...], kinds: tuple[Any, ...]) -> bool:
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    return len(values) == len(kinds) and all(map(_fits, values, kinds))


def _words(kind: Any) -> str:
    """A type for people."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is dict:
        return f"a table of names and values, each {_words(inner[1])}"
    if origin is tuple:
        return f"a list of {'' if inner[-1] is Ellipsis else f'{len(inner)} '}values, each {_words(inner[0])}"
    return WORDS[kind]
