"""State dicts of files through a layout, every key accounted for: used, dropped, resized, absent.

Files differ from the layout of their release in known ways: prefixes of wrappers, no decoder, a class token that has a
position. These are evened out here; what is still left over or missing is an error unless a pattern allows it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor

from omnitrunk.models.official.parts import AnyPart, Computed, Derived, Grids, Layout, Part, SequenceTable, read, write

WRAPPINGS = re.compile(r"^((_orig_mod|module|encoder|backbone|MAE_encoder)\.)+")
"""What may stand before the names of a model's or an encoder's tensors."""
DECODER = ("decoder.", "decoders.", "context.")
"""Beginnings of our names for what an encoder alone has not."""
Side = Literal["official", "ours"]


@dataclass(frozen=True, kw_only=True)
class Account:
    """What became of every key of a file, and of every key that the layout has besides."""

    used: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Keys that were taken -> those that were made of each."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Keys that were left out -> why."""
    absent: dict[str, str] = field(default_factory=dict)
    """Keys that the layout has and the file lacks -> why that is no error."""
    resized: dict[str, Grids] = field(default_factory=dict)
    """Position tables that were resampled -> from which grid to which."""
    notes: list[str] = field(default_factory=list)
    """What else was done, a sentence each."""


def from_release(
    state: Mapping[str, Tensor], layout: Layout, *, allow: Sequence[str] = (), encoder_only: bool = False
) -> tuple[dict[str, Tensor], Account]:
    """Our state dict from a file's, and the account of it. The decoder may be wholly absent.

    `allow`: shell patterns of keys that may be left over or missing; `encoder_only` leaves a decoder out. Raises
    ValueError for the first key that is missing, unexpected or misshapen.
    """
    account, everything = Account(), list(layout)
    origin = _origins(state, {name for part in everything if (name := _name(part, "official"))}, account)
    origin = _without_aliases(origin, everything, account)
    kept, parts = _select(origin, everything, "official", allow, account, encoder_only=encoder_only)
    named = {name: state[origin[name]] for name in kept}
    named = _move_class_position(named, parts, account)
    ours = read(named, parts)
    for part in parts:
        if isinstance(part, Computed):
            account.notes.append(f"{part.ours} was computed: the release stores none")
            continue
        if isinstance(part, Derived):
            if key := origin.get(part.official):
                account.dropped[key] = "it follows from the sizes"
            continue
        key = origin[part.official]
        account.used[key] = (*account.used.get(key, ()), part.ours)
        if grids := part.resized(named[part.official].shape):
            account.resized[key] = grids
    return ours, account


def to_release(
    state: Mapping[str, Tensor], layout: Layout, *, allow: Sequence[str] = (), encoder_only: bool = False
) -> tuple[dict[str, Tensor], Account]:
    """The released state dict from ours, and the account of it; options and errors are those of `from_release`."""
    account = Account()
    kept, parts = _select(
        {name: name for name in state}, list(layout), "ours", allow, account, encoder_only=encoder_only
    )
    official = write({name: state[name] for name in kept}, parts)
    for part in parts:
        if isinstance(part, Computed):
            account.dropped[part.ours] = "the release computes it"
        elif isinstance(part, Derived):
            account.notes.append(f"{part.official} was computed: ours stores none")
        else:
            account.used[part.ours] = (*account.used.get(part.ours, ()), part.official)
    return official, account


def _origins(keys: Iterable[str], expected: Collection[str], account: Account) -> dict[str, str]:
    """The file's keys by their names in the layout: as they are, or without what wrappers put before them."""
    plain = {WRAPPINGS.sub("", name): name for name in expected}
    origins: dict[str, str] = {}
    prefixes: Counter[str] = Counter()
    for key in keys:
        bare = WRAPPINGS.sub("", key)
        name = key if key in expected else plain.get(bare, key)
        if name in origins:
            raise ValueError(f"{origins[name]!r} and {key!r} are both {name!r} without prefixes; remove one of them")
        if name != key:
            prefixes[key[: len(key) - len(bare)], name[: len(name) - len(bare)]] += 1
        origins[name] = key
    for (there, here), count in prefixes.items():
        account.notes.append(f"the prefix {there!r} of {count} keys was read as {here!r}")
    return origins


def _without_aliases(origin: Mapping[str, str], layout: list[AnyPart], account: Account) -> dict[str, str]:
    """The file's keys by the names that the layout knows them under first."""
    known = {part.alias: part.official for part in layout if isinstance(part, Part) and part.official not in origin}
    found = {alias: name for alias, name in known.items() if alias in origin}
    account.notes.extend(f"{origin[alias]} was read as {name}" for alias, name in found.items())
    return {found.get(name, name): key for name, key in origin.items()}


def _select(
    origin: Mapping[str, str],
    layout: list[AnyPart],
    side: Side,
    allow: Sequence[str],
    account: Account,
    *,
    encoder_only: bool,
) -> tuple[list[str], list[AnyPart]]:
    """The keys to convert and the parts of the layout that they fill; the account learns of all others."""
    decoder = {name for part in layout if _of_decoder(part) and (name := _name(part, side))}
    if encoder_only or (decoder and decoder.isdisjoint(origin)):
        layout = [part for part in layout if not _of_decoder(part)]
        account.dropped.update({origin[key]: "only the encoder is wanted" for key in origin if key in decoder})
        if decoder and decoder.isdisjoint(origin):
            account.notes.append("the file is an encoder's: what a decoder has is absent, as it may be")
    expected = {name for part in layout if (name := _name(part, side))}
    surplus = {key for key in origin if key not in expected and key not in decoder and _allowed(origin[key], allow)}
    missing = {name for name in expected if name not in origin and _allowed(name, allow)}
    account.dropped.update({origin[key]: "allowed" for key in origin if key in surplus})
    account.absent.update(dict.fromkeys(missing, "allowed"))
    used = [origin[key] for key in surplus] + list(missing)
    account.notes.extend(f"{one!r} allowed nothing" for one in allow if not any(fnmatchcase(key, one) for key in used))
    whole = _without(layout, side, missing)
    lost = expected - {_name(part, side) for part in whole}
    account.dropped.update({origin[key]: "its counterparts are absent" for key in origin if key in lost})
    gone = surplus | lost | (decoder - expected)
    return [key for key in origin if key not in gone], whole


def _of_decoder(part: AnyPart) -> bool:
    return (_name(part, "ours") or "").startswith(DECODER)


def _name(part: AnyPart, side: Side) -> str | None:
    """The part's key on one side; there is none for what that side computes."""
    return getattr(part, side, None)


def _without(layout: list[AnyPart], side: Side, missing: Collection[str]) -> list[AnyPart]:
    """The layout without the parts of missing keys, nor those that share a tensor with them on either side."""
    lost = {(side, name) for name in missing}
    while linked := {end for part in layout if lost & _ends(part) for end in _ends(part)}:
        lost |= linked
        layout = [part for part in layout if not lost & _ends(part)]
    return layout


def _ends(part: AnyPart) -> set[tuple[str, str]]:
    return {(side, name) for side in ("official", "ours") if (name := _name(part, side))}


def _allowed(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _move_class_position(named: dict[str, Tensor], layout: Layout, account: Account) -> dict[str, Tensor]:
    """Add the table's first row to the class token where ours has no other place for it: the sum is what is used."""
    tables = [part for part in layout if isinstance(part, SequenceTable) and part.ours == "tokenizer.position"]
    tokens = [part.official for part in layout if isinstance(part, Part) and part.ours == "class_token"]
    for table in (part for part in tables if not part.class_position and tokens):
        values, token = named.get(table.official), named.get(tokens[0])
        if values is None or token is None or not table.accepts(values.shape):
            continue
        if token.shape != values[:, :1].shape or not values[:, 0].any():
            continue
        moved = values.clone()
        moved[:, 0] = 0
        named = named | {table.official: moved, tokens[0]: token + values[:, :1]}
        account.notes.append(f"the class token's row of {table.official} was added to {tokens[0]}")
    return named
