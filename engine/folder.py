"""The folder of a run: what is in it, and whether a run starts, resumes or is done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from omnitrunk.engine import checkpoint, durable
from omnitrunk.engine.config import RunConfig, as_dict, dump

CONFIG = "config.toml"
WRITTEN_BY_RUNS = (
    CONFIG,
    checkpoint.LATEST,
    *(f"{checkpoint.FOLDER}/{name}" for name in checkpoint.WRITTEN),
    "log.jsonl",
    "evaluation.jsonl",
    f"samples/{checkpoint.STEP}.png",
    f"samples/.{checkpoint.STEP}.png{durable.ASIDE}",
    "events.out.tfevents.*",
    f".*{durable.ASIDE}",
)
"""All that a run puts into its folder, and so all that starting afresh may delete; a file of somebody else stays."""


def is_finished(config: RunConfig) -> bool:
    """Whether the folder holds a checkpoint of this model's last step, with the scores that are asked for.

    Never if it is to be overwritten.
    """
    found = checkpoint.complete(Path(config.run.folder))
    if config.run.overwrite or not found or (config.evaluate.every and not (found[-1] / checkpoint.SCORES).exists()):
        return False
    state = checkpoint.read_state(found[-1])
    return state["step"] >= config.run.steps and state["config"]["model"] == as_dict(config.model)


def finished(config: RunConfig) -> str:
    """What to say of a run that `is_finished`: how far it came, and what of this configuration it has not seen."""
    state = checkpoint.read_state(checkpoint.complete(Path(config.run.folder))[-1])
    changes = differences(state["config"], config)
    untrained = f"; changed since and not trained: {', '.join(changes)}" if changes else ""
    return f"{config.run.folder} is finished, {state['step']} steps{untrained}; --run.overwrite true starts afresh"


def prepare(config: RunConfig) -> None:
    """Make the folder ready: delete what is to be overwritten or was left unfinished, and write the configuration.

    Call it when the configuration is known to work, so that a mistake in it deletes nothing.
    """
    folder = Path(config.run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if config.run.overwrite:
        _empty(folder)
    checkpoint.clean(folder)
    # Overwriting is a wish of one moment: stored, it would delete the run when it is started again from this file.
    durable.write_text(folder / CONFIG, dump(replace(config, run=replace(config.run, overwrite=False))))


def _empty(folder: Path) -> None:
    """Delete what runs write, then the folders that nothing is left in."""
    for pattern in WRITTEN_BY_RUNS:
        for path in folder.glob(pattern):
            checkpoint.remove(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for part in (folder / checkpoint.FOLDER, folder / "samples"):
        if part.is_dir() and not part.is_symlink() and not any(part.iterdir()):
            part.rmdir()


def differences(saved: dict[str, Any], config: RunConfig) -> list[str]:
    """What changed since a checkpoint's configuration was `saved`, as "section.field old -> new"."""
    return [
        f"{section}.{name} {saved.get(section, {}).get(name)!r} -> {value!r}"
        for section, fields in as_dict(config).items()
        for name, value in fields.items()
        if saved.get(section, {}).get(name) != value and name not in ("folder", "overwrite")
    ]
