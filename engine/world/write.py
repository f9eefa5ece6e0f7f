"""Writes a world to disk: the layout of folders, the processes that share the work, and a publication all at once."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnitrunk.engine.world.export import EXTENSIONS, export, facts
from omnitrunk.engine.world.scene import split_of
from omnitrunk.engine.world.solids import CLASSES

__all__ = ["WorldSummary", "write_world"]

FORMAT = "omnitrunk-world-1"
DESCRIPTION = "dataset.json"
SPLITS = ("train", "val")
LEAST_SCENES = 2 * len(CLASSES)  # the first run of the classes is for training, the second for validation
LEAST_SIZE = 32
CHUNK = 8  # scenes a process takes at a time: under a second, so that an interrupt is soon obeyed


@dataclass(frozen=True)
class WorldSummary:
    """What lies at root: files and bytes of each modality, the classes, scenes of each split.

    seconds is how long the call took; written is False when the same world was there already.
    """

    root: Path
    files: dict[str, int]
    bytes: dict[str, int]
    classes: tuple[str, ...]
    scenes: dict[str, int]
    seconds: float
    written: bool


def write_world(
    root: str | Path, scenes: int = 2000, seed: int = 0, workers: int | None = None, size: int = 96
) -> WorldSummary:
    """Write the world of a seed to the folder root, or leave it alone when it is already there.

    Scene i depends on (seed, i, size) only, so a larger world contains the smaller one and the number of workers
    (processes; by default one per core) changes nothing but the time. Pictures and maps are size x size pixels. The
    world appears at root complete or not at all. Workers are spawned, so a script must call this from under
    `if __name__ == "__main__"`. Raises ValueError for a folder that holds anything else, or a bad argument.
    """
    started = time.perf_counter()
    _check(scenes, workers, size)
    root = Path(root).resolve()
    description = _describe(scenes, seed, size)
    written = not _holds(root, description)
    if written:
        _write(root, description, seed, workers or _cores())
    sizes = _file_sizes(root)
    files = {modality: len(size) for modality, size in sizes.items()}
    if set(files.values()) != {scenes}:
        raise ValueError(f"{root} is a world that has lost files; delete the folder and write it again")
    return WorldSummary(
        root=root,
        files=files,
        bytes={modality: sum(size) for modality, size in sizes.items()},
        classes=CLASSES,
        scenes=description["scenes"],
        seconds=time.perf_counter() - started,
        written=written,
    )


def _check(scenes: int, workers: int | None, size: int) -> None:
    if scenes < LEAST_SCENES:
        raise ValueError(f"scenes = {scenes}: at least {LEAST_SCENES} are needed for every class in train and val")
    if size < LEAST_SIZE:
        raise ValueError(f"size = {size}: pictures need at least {LEAST_SIZE} pixels a side to show the solid")
    if workers is not None and workers < 1:
        raise ValueError(f"workers = {workers}: use at least 1, or leave it out for one per core")


def _cores() -> int:
    """The cores this process may use, where the system can say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _describe(scenes: int, seed: int, size: int) -> dict[str, Any]:
    """What dataset.json holds."""
    splits = [split_of(index) for index in range(scenes)]
    counts = {split: splits.count(split) for split in SPLITS}
    return {"format": FORMAT, "seed": seed, "scenes": counts, **facts(size)}


def _holds(root: Path, description: dict[str, Any]) -> bool:
    """Whether root holds this very world; False when nothing is there, ValueError when anything else is."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / DESCRIPTION).read_text())
    except (OSError, ValueError):
        found = {}
    if not isinstance(found, dict) or "format" not in found:
        raise ValueError(f"{root} exists and is not a world; choose a folder that is new or empty")
    if different := [key for key, value in description.items() if found.get(key) != value]:
        said = ", ".join("number of scenes" if key == "scenes" else key for key in different)
        raise ValueError(f"{root} holds a world with another {said}; choose another folder or delete this one")
    return True


def _write(root: Path, description: dict[str, Any], seed: int, workers: int) -> None:
    """Everything into a folder beside root, which disappears whatever happens, then one rename."""
    scenes, size = sum(description["scenes"].values()), description["image_size"][0]
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{root.name}.partial-", dir=root.parent) as aside:
        partial = Path(aside) / root.name
        for split, modality, name in itertools.product(SPLITS, EXTENSIONS, CLASSES):
            (partial / split / modality / name).mkdir(parents=True)
        chunks = [range(start, min(start + CHUNK, scenes)) for start in range(0, scenes, CHUNK)]
        _write_scenes(functools.partial(_write_chunk, partial, seed, size), chunks, workers)
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
        os.sync()  # thousands of small files: one sync of everything costs less than one of each
        _publish(partial, root)


def _write_scenes(task: Callable[[range], None], chunks: list[range], workers: int) -> None:
    if min(workers, len(chunks)) == 1:
        for chunk in chunks:
            task(chunk)
        return
    # Not forked: the caller may have threads and a GPU, which a fork would copy in whatever state they are.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), spawn, initializer=_leave_interrupts_to_parent) as pool:
        for _ in pool.map(task, chunks):
            pass  # the first failure is raised here, and cancels the rest


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_chunk(partial: Path, seed: int, size: int, chunk: range) -> None:
    for index in chunk:
        name, contents = export(seed, index, size)
        for modality, content in contents.items():
            file = f"{index:06d}.{EXTENSIONS[modality]}"
            (partial / split_of(index) / modality / name / file).write_bytes(content)


def _publish(partial: Path, root: Path) -> None:
    try:
        partial.rename(root)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise ValueError(f"{root} was filled by someone else meanwhile; run again to see what it holds") from error


def _file_sizes(root: Path) -> dict[str, list[int]]:
    """Bytes of every file of each modality of the world at root."""
    return {
        modality: [file.stat().st_size for split in SPLITS for file in root.glob(f"{split}/{modality}/*/*.{extension}")]
        for modality, extension in EXTENSIONS.items()
    }
