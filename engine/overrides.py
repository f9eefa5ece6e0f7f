"""Fields of a configuration that the command line gives another value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


def with_data_sets(values: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Values with what overrides change in single data sets, and the other overrides.

    jsonargparse would take a field of a data set, `--mixture.sets.NAME.FIELD VALUE`, for all that the data set has.
    ValueError where no value follows.
    """
    changed: dict[str, dict[str, Any]] = {}
    others, words = [], iter(overrides)
    for word in words:
        flag, given, value = word.partition("=")
        if not (found := re.fullmatch(r"--mixture\.sets\.(\w+)\.(\w+)", flag)):
            others.append(word)
            continue
        text = value if given else next(words, None)
        if text is None:
            raise ValueError(f"{flag} needs a value")
        name, field = found.groups()
        changed.setdefault(name, {})[field] = _value(text)
    return _merged(values, {"mixture": {"sets": changed}}) if changed else dict(values), others


def _merged(values: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts with changes; what is no dict there, a mistake, gives way."""
    merged = dict(values) if isinstance(values, Mapping) else {}
    for name, change in changes.items():
        merged[name] = _merged(merged.get(name), change) if isinstance(change, Mapping) else change
    return merged


def _value(text: str) -> Any:
    """What a word stands for: a value of TOML, or else a string."""
    from jsonargparse import get_loader

    try:
        return get_loader("toml")(f"value = {text}")["value"]
    except ValueError:
        return text
