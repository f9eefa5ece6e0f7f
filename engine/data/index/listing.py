"""The index of a data set that is a list of files: ROOT/<split>.csv with a header, or lines of path and label."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from omnitrunk.engine.data.files import check_readable, read_file
from omnitrunk.engine.data.labels import number_labels

LAYOUT = 'ROOT/<split>.csv with the header "path,label", or ROOT/<split>.txt with lines "path label"'
SUFFIXES = ("", ".csv", ".txt")
"""Added to the name of a split to find its list."""


class ListIndex:
    """The samples of one list, in its order. Paths are relative to the folder of the list, or absolute.

    A CSV file begins with a header: `label`, if there are labels, and `path`, or a column for each modality, named like
    it. Any other text has one sample a line: a path, a blank, and a label (the lists of VideoMAE). Labels are numbers
    or names: see `labels.number_labels`. Files are not touched until they are read.
    """

    def __init__(self, root: str | Path, split: str, modalities: Sequence[str]) -> None:
        file = find_list(root, split)
        for modality in modalities:
            check_readable(modality)
        rows = _read_csv(file, modalities) if _has_header(file) else _read_lines(file, modalities)
        if not rows:
            raise ValueError(f"{file} names no samples: match {LAYOUT}")
        self._folder = str(file.parent)
        self.modalities = tuple(modalities)
        self._rows = [row[:-1] for row in rows]
        self.missing = 0
        words = [row[-1] for row in rows]
        self.labels, self.classes, self.numbered = number_labels(words, str(file))
        digest = hashlib.sha256(repr(self.modalities).encode())
        for row in rows:
            digest.update(repr(row).encode())
        self.fingerprint = digest.hexdigest()
        """Changes with the list; the files that it names are not looked at."""

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, sample: int, modality: str) -> str:
        """The file of one modality of one sample."""
        return os.path.join(self._folder, self._rows[sample][self.modalities.index(modality)])

    def read(self, sample: int, modality: str) -> bytes:
        """Its bytes."""
        return read_file(self.path(sample, modality))


def find_list(root: str | Path, split: str) -> Path:
    """The list of a split, or a ValueError that says what there is."""
    if not str(root):
        raise ValueError("data.root is not set: give the folder of the lists, " + LAYOUT)
    if not Path(root).is_dir():
        raise ValueError(f"data.root {root} is not a folder: give the folder of the lists, {LAYOUT}")
    for suffix in SUFFIXES:
        if (file := Path(root) / f"{split}{suffix}").is_file():
            return file
    found = ", ".join(sorted(path.name for path in Path(root).iterdir() if path.suffix in SUFFIXES[1:]))
    raise ValueError(f"{root} has no list {split}.csv or {split}.txt; it has: {found or 'none'}")


def _has_header(file: Path) -> bool:
    with file.open(encoding="utf-8") as lines:
        return "," in lines.readline()


def _read_csv(file: Path, modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Per sample, the path of every modality and then the label ("" where the list has none)."""
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines, skipinitialspace=True)
        header = reader.fieldnames or []
        columns = ["path"] if len(modalities) == 1 and "path" in header else list(modalities)
        if absent := [name for name in columns if name not in header]:
            fix = "path" if len(modalities) == 1 else ", ".join(absent)
            raise ValueError(f"{file} has the columns {', '.join(header)}: it needs {fix} and, for labels, label")
        rows = [(*(row[name] or "" for name in columns), (row.get("label") or "").strip()) for row in reader]
    _check_paths(file, rows)
    return rows


def _read_lines(file: Path, modalities: Sequence[str]) -> list[tuple[str, ...]]:
    if len(modalities) != 1:
        raise ValueError(f"{file} has one path a line, but the model reads {', '.join(modalities)}: use a CSV file")
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        path, blank, label = line.strip().rpartition(" ")
        if line.strip():
            rows.append((path, label) if blank else (label, ""))
    return rows


def _check_paths(file: Path, rows: list[tuple[str, ...]]) -> None:
    for number, row in enumerate(rows, 1):
        if not all(row[:-1]):
            raise ValueError(f"{file}: sample {number} lacks a path: fill it in or remove the line")
