"""The index of a data set stored as tar archives: ROOT/<split>/*.tar or ROOT/<split>/<modality>/*.tar (WebDataset)."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from omnitrunk.engine.data.files import SUFFIXES, check_readable, read_file
from omnitrunk.engine.data.formats.tar import DamagedArchive, Member, members
from omnitrunk.engine.data.index.folder import split_folder
from omnitrunk.engine.data.labels import number_labels

log = logging.getLogger(__name__)

LAYOUT = "ROOT/<split>/*.tar or ROOT/<split>/<modality>/*.tar with members KEY.EXT, or KEY.MODALITY.EXT"
SCANNERS = 16
"""Archives whose headers are read at a time: on a network file system that is waiting, not work."""


@dataclass(slots=True)
class _Entry:
    """One key of one archive."""

    places: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """Modality -> (offset, bytes, extension)."""
    label: str = ""


_Table = dict[str, _Entry]  # key -> what the archive has of it


class ShardIndex:
    """The samples of one split that have a member for every requested modality, in the order of archives and keys.

    A sample is the members of one archive that share a key: the name up to the first dot after the last slash. KEY.EXT
    belongs to the requested modality that takes such files; where several do, as .png does, KEY.depth.png tells.
    Modalities in folders of their own have archives of the same names there, with the same keys. The label is the text
    of KEY.cls or the entry "label" of KEY.json, a number or a name: see `labels.number_labels`.

    Making the index reads every header once and no more of the archives than that and the labels; its table stays in
    memory. Samples are read at their offsets, so that their order is as free as that of single files.
    """

    def __init__(self, root: str | Path, split: str, modalities: Sequence[str]) -> None:
        for modality in modalities:
            check_readable(modality)
        self.modalities = tuple(modalities)
        self._homes = _homes(split_folder(root, split, LAYOUT), modalities)
        self._names: list[tuple[str, str]] = []  # archive, key
        self._extensions: list[list[str]] = []
        self.missing = 0
        self._first_missing = ""
        places: list[list[tuple[int, int]]] = []
        labels: list[str] = []
        for archive, table in zip(self._archives(), self._tables(), strict=True):
            for key, entry in table.items():
                if self._is_complete(archive, key, entry):
                    found = [entry.places[modality] for modality in modalities]
                    self._names.append((archive, key))
                    self._extensions.append([sys.intern(extension) for _, _, extension in found])
                    places.append([(offset, size) for offset, size, _ in found])
                    labels.append(entry.label)
        if not places:
            wanted = ", ".join(modalities)
            raise ValueError(f"no sample of {root}/{split} has a member for each of {wanted}: match {LAYOUT}")
        if self.missing:
            log.warning("%d samples of %s/%s are left out; first: %s", self.missing, root, split, self._first_missing)
        self._places = np.array(places, dtype=np.int64)  # (samples, modalities, 2)
        self.labels, self.classes, self.numbered = number_labels(labels, f"{root}/{split}")
        self.fingerprint = self._digest()
        """Changes when a used member is added, removed, renamed or resized."""

    def __len__(self) -> int:
        return len(self._names)

    def path(self, sample: int, modality: str) -> str:
        """The archive and member of one modality of one sample, for messages."""
        archive, key = self._names[sample]
        extension = self._extensions[sample][self.modalities.index(modality)]
        return f"{self._homes[modality] / archive}:{key}.{extension}"

    def read(self, sample: int, modality: str) -> bytes:
        """Its bytes."""
        offset, size = self._places[sample, self.modalities.index(modality)].tolist()
        return read_file(str(self._homes[modality] / self._names[sample][0]), offset, size)

    def _archives(self) -> list[str]:
        """The names of all archives, sorted."""
        return sorted({path.name for home in set(self._homes.values()) for path in home.glob("*.tar")})

    def _tables(self) -> list[_Table]:
        """For every archive, its entries in every home joined by key, sorted."""
        with ThreadPoolExecutor(SCANNERS, thread_name_prefix="scan") as pool:
            return list(pool.map(self._table, self._archives()))

    def _table(self, archive: str) -> _Table:
        joined: _Table = {}
        for home in dict.fromkeys(self._homes.values()):
            here = [modality for modality in self.modalities if self._homes[modality] == home]
            for key, entry in _scan(home / archive, here).items():
                whole = joined.setdefault(key, entry)
                whole.places.update(entry.places)
                whole.label = whole.label or entry.label
        return dict(sorted(joined.items()))

    def _is_complete(self, archive: str, key: str, entry: _Entry) -> bool:
        absent = [modality for modality in self.modalities if modality not in entry.places]
        if absent and not self.missing:
            self._first_missing = f"{archive}:{key} has no member for {', '.join(absent)}"
        self.missing += bool(absent)
        return not absent

    def _digest(self) -> str:
        digest = hashlib.sha256(repr(self.modalities).encode())
        for (archive, key), extensions in zip(self._names, self._extensions, strict=True):
            digest.update(f"{archive}/{key}.{extensions}\n".encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(self._places[..., 1]).tobytes())
        return digest.hexdigest()


def _homes(folder: Path, modalities: Sequence[str]) -> dict[str, Path]:
    """Modality -> the folder of its archives."""
    homes = {}
    for modality in modalities:
        own = folder / modality
        homes[modality] = own if own.is_dir() and any(own.glob("*.tar")) else folder
        if not any(homes[modality].glob("*.tar")):
            raise ValueError(f"{folder} has no archives for {modality}: match {LAYOUT}")
    return homes


def _scan(path: Path, modalities: Sequence[str]) -> _Table:
    """The entries of one archive; none where there is no such archive."""
    table: _Table = {}
    if not path.is_file():
        return table
    try:
        for member in members(str(path)):
            _enter(table, path, member, modalities)
    except DamagedArchive as reason:
        log.warning("bad archive %s: %s; the %d samples before that are used", path, reason, len(table))
    return table


def _enter(table: _Table, path: Path, member: Member, modalities: Sequence[str]) -> None:
    folder, slash, name = member.name.removeprefix("./").rpartition("/")
    stem, dot, extension = name.partition(".")
    modality = _modality_of(extension.lower(), modalities)
    if not dot or (modality is None and extension not in ("cls", "json")):
        return
    entry = table.setdefault(folder + slash + stem, _Entry())
    if modality is None:
        entry.label = _label(path, member, extension) or entry.label
    elif modality in entry.places:
        other = entry.places[modality][2]
        raise ValueError(f"two members of one sample for {modality}: {path}:{member.name} and .{other}; remove one")
    else:
        entry.places[modality] = member.offset, member.size, extension


def _modality_of(extension: str, modalities: Sequence[str]) -> str | None:
    """The modality that a member belongs to, if it is one of those requested."""
    named, _, suffix = extension.partition(".")
    if named in modalities and f".{suffix}" in SUFFIXES[named]:
        return named
    fitting = [modality for modality in modalities if f".{extension}" in SUFFIXES[modality]]
    return fitting[0] if len(fitting) == 1 else None


def _label(path: Path, member: Member, extension: str) -> str:
    whole = len(member.head) == member.size
    content = member.head if whole else read_file(str(path), member.offset, member.size)
    if extension == "cls":
        return content.decode("utf-8", "replace").strip()
    try:
        facts = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}:{member.name} is not valid JSON: {error}; repair or remove it") from error
    return str(facts.get("label", "")) if isinstance(facts, dict) else ""
