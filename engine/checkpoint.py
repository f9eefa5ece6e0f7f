"""Checkpoints: folders that are either complete or not there.

checkpoints/step-00000100/ holds model.safetensors, ema.safetensors (where an average is kept), optimizer.safetensors,
state.json and, last of all, an empty COMPLETE. A folder is written under another name, flushed, renamed, and only then
declared complete and named by the link `latest`; older ones are deleted after that. So at any moment a power cut leaves
the newest complete checkpoint as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnitrunk.engine import durable
from omnitrunk.engine.messages import remedy

COMPLETE = "COMPLETE"
FOLDER = "checkpoints"
LATEST = "latest"
SCORES = "evaluation.json"
"""What a full evaluation adds to a checkpoint."""
STEP = f"step-{'[0-9]' * 8}"
"""Names of checkpoints; folders of other names, such as a copy somebody keeps, are left alone."""
WRITTEN = (STEP, f".{STEP}{durable.ASIDE}")
"""Names of all that saving may leave in the folder of checkpoints."""
STATE = ("step", "samples_seen", "seed", "fingerprint", "meters", "config")
"""What state.json must hold."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often to save and how much to keep."""

    every: int = 1000
    """Steps between checkpoints; one is always written at the end and on a signal. 0 writes only those."""
    keep: int = 2
    """Newest complete checkpoints that stay on the disk."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.keep < 1:
            raise ValueError(
                f"checkpoint.every = {self.every} must be 0 or more and checkpoint.keep = {self.keep} 1 or more"
            )


def save(run: Path, step: int, tensors: Mapping[str, dict[str, Tensor]], state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of `step` in the run folder, delete all but the newest `keep`, and return its folder.

    `tensors`: file name without suffix -> tensors by name; `state` goes to state.json. OSError, in one line, when the
    disk does not take it; nothing is left of the attempt then and older checkpoints are as they were.
    """
    final = run / FOLDER / f"step-{step:08d}"
    temporary = durable.aside(final)
    try:
        temporary.mkdir(parents=True)
        for name, values in tensors.items():
            _write_tensors(temporary / f"{name}.safetensors", values)
        durable.write_text(temporary / "state.json", json.dumps(state, indent=1))
        temporary.rename(final)
        durable.sync(final.parent)
        (final / COMPLETE).touch()
        durable.sync(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).removeprefix("Error while serializing: ")
        raise OSError(
            f"cannot save checkpoint {final}: {reason}; {remedy(error, run)} and start again, the run resumes"
        ) from error
    durable.point(run / LATEST, f"{FOLDER}/{final.name}")
    for old in complete(run)[:-keep]:
        remove(old)
    return final


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    durable.sync(path)


def complete(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, the oldest first."""
    return sorted(mark.parent for mark in (run / FOLDER).glob(f"{STEP}/{COMPLETE}"))


def remove(folder: Path) -> None:
    """Delete a checkpoint; one that is deleted in part counts as incomplete, not as damaged."""
    (folder / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def clean(run: Path) -> None:
    """Delete what interrupted saves left behind, and let `latest` name the newest complete checkpoint."""
    folders = complete(run)
    for pattern in WRITTEN:
        for leftover in set((run / FOLDER).glob(pattern)).difference(folders):
            shutil.rmtree(leftover)
    if folders:
        durable.point(run / LATEST, f"{FOLDER}/{folders[-1].name}")


def find(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest complete one of a run folder. ValueError if none."""
    if (path / COMPLETE).exists():
        return path.resolve()
    found = complete(path)
    if not found:
        raise ValueError(f"{path} is neither a complete checkpoint nor a run folder with one")
    return found[-1]


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint. ValueError if it is damaged."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder, "state.json", error) from error
    if lost := [name for name in STATE if not isinstance(state, dict) or name not in state]:
        raise _damaged(folder, "state.json", f"there is no {lost[0]} in it")
    return state


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint, on the CPU. ValueError if it is damaged or not there."""
    path = folder / f"{name}.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise _damaged(folder, path.name, "there is no such file") from error
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, path.name, error) from error


def read_average(folder: Path) -> dict[str, Tensor] | None:
    """The averaged weights of a checkpoint, None where no average was kept. ValueError if they are damaged."""
    return read_tensors(folder, "ema") if (folder / "ema.safetensors").exists() else None


def _damaged(folder: Path, file: str, what: object) -> ValueError:
    return ValueError(f"checkpoint {folder} is damaged: {file}: {what}; delete it to use the one before")


def check_same_model(
    folder: Path,
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    model: torch.nn.Module,
) -> None:
    """ValueError, naming the first difference, unless a checkpoint's model is the one configured now.

    `saved` and `now` are the model sections of the two configurations; `tensors` is what the checkpoint holds.
    """
    fix = "use another run.folder, or --run.overwrite true to start afresh"
    for field in {**saved, **now}:
        if saved.get(field) != now.get(field):
            raise ValueError(
                f"{folder} holds another model: model.{field} was {saved.get(field)!r} and is {now.get(field)!r}; {fix}"
            )
    wanted = model.state_dict()
    for name in {**tensors, **wanted}:
        shapes = [tuple(values[name].shape) if name in values else "missing" for values in (tensors, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{folder} holds another model: {name} is {shapes[0]} there and {shapes[1]} here; {fix}")
