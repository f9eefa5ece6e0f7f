"""The index of a data set stored as ordinary files: ROOT/<split>/<modality>/<class>/<stem>.<suffix>."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from omnitrunk.engine.data.files import SUFFIXES, check_readable, read_file

log = logging.getLogger(__name__)

LAYOUT = "ROOT/<split>/<modality>/<class>/<stem>.<suffix>"

Files = dict[str, tuple[str, int]]  # stem -> (suffix, bytes)


class FolderIndex:
    """The samples of one split that have a file in every requested modality, in the order of their names.

    A sample is a (class folder, stem). Its label is the place of its class among the sorted class folders of the first
    requested modality. Samples without all their files are left out, counted in `missing` and named once in the log.
    """

    def __init__(self, root: str | Path, split: str, modalities: Sequence[str]) -> None:
        self.folder = split_folder(root, split, LAYOUT)
        self.classes = class_folders(root, split, modalities[0])
        self.numbered = False
        self.modalities = tuple(modalities)
        self.missing = 0
        self._first_missing = ""
        self._names: list[str] = []  # class/stem
        self._suffixes: dict[str, list[str]] = {modality: [] for modality in modalities}
        labels: list[int] = []
        digest = hashlib.sha256()
        names = set(self.classes).union(*(class_folders(root, split, modality) for modality in modalities[1:]))
        for name in sorted(names):
            files = {m: _scan(self.folder / m / name, SUFFIXES[m]) for m in modalities}
            stems = self._complete(name, files)
            if stems:
                labels += [self.classes.index(name)] * len(stems)
            self._add(name, stems, files, digest)
        if not self._names:
            wanted = ", ".join(modalities)
            raise ValueError(f"no sample of {self.folder} has a file in each of {wanted}: match {LAYOUT}")
        if self.missing:
            log.warning("%d samples of %s are left out; first: %s", self.missing, self.folder, self._first_missing)
        self.labels = np.array(labels, dtype=np.int64)
        self.fingerprint = digest.hexdigest()
        """Changes when a used file is added, removed, renamed or resized."""

    def __len__(self) -> int:
        return len(self._names)

    def path(self, sample: int, modality: str) -> str:
        """The file of one modality of one sample."""
        return f"{self.folder}/{modality}/{self._names[sample]}{self._suffixes[modality][sample]}"

    def read(self, sample: int, modality: str) -> bytes:
        """Its bytes."""
        return read_file(self.path(sample, modality))

    def _complete(self, name: str, files: dict[str, Files]) -> list[str]:
        """The sorted stems of a class that every modality has; counts the others."""
        tables = list(files.values())
        common = set(tables[0]).intersection(*tables[1:])
        partial = set().union(*tables) - common
        if partial and not self.missing:
            stem = min(partial)
            absent = [modality for modality, table in files.items() if stem not in table]
            self._first_missing = f"{name}/{stem} has no file in {', '.join(absent)}"
        self.missing += len(partial)
        return sorted(common)

    def _add(self, name: str, stems: Iterable[str], files: dict[str, Files], digest: hashlib._Hash) -> None:
        for stem in stems:
            self._names.append(f"{name}/{stem}")
            for modality, table in files.items():
                suffix, size = table[stem]
                self._suffixes[modality].append(suffix)
                digest.update(f"{modality}/{name}/{stem}{suffix}\t{size}\n".encode())


def class_folders(root: str | Path, split: str, modality: str) -> list[str]:
    """The sorted class folders of one modality, or a ValueError that says what is missing."""
    folder = split_folder(root, split, LAYOUT)
    check_readable(modality)
    if not (folder / modality).is_dir():
        raise ValueError(f"{folder} has no folder {modality}; it has: {', '.join(_subfolders(folder)) or 'none'}")
    names = _subfolders(folder / modality)
    if not names:
        raise ValueError(f"{folder / modality} has no class folders: match {LAYOUT}, one class may hold all")
    return names


def split_folder(root: str | Path, split: str, layout: str) -> Path:
    """The folder of a split, or a ValueError that says what there is; `layout` is the one to match."""
    if not str(root):
        raise ValueError("data.root is not set: give a folder laid out as " + layout)
    if not Path(root).is_dir():
        raise ValueError(f"data.root {root} does not exist: `omnitrunk world {root}` writes one, or match {layout}")
    folder = Path(root) / split
    if not folder.is_dir():
        raise ValueError(f"{root} has no split {split}; it has: {', '.join(_subfolders(Path(root))) or 'none'}")
    return folder


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _scan(folder: Path, suffixes: tuple[str, ...]) -> Files:
    """Stem -> (suffix, bytes) of the files of one class; none where the modality lacks the class."""
    files: Files = {}
    if not folder.is_dir():
        return files
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, dot, ending = entry.name.rpartition(".")
            if not stem or (dot + ending).lower() not in suffixes:
                continue
            if stem in files:
                raise ValueError(f"two files of one sample: {folder / stem}{files[stem][0]} and .{ending}; remove one")
            files[stem] = (sys.intern(dot + ending), entry.stat().st_size)
    return files
