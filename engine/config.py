"""The configuration of a run: one TOML file, any field of which can be overridden as `--section.field VALUE`.

Every section is a frozen dataclass that lives with the component it configures; this file only puts them side by side,
reads them and writes them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from omnitrunk.engine.checkpoint import CheckpointConfig
from omnitrunk.engine.data import DataConfig
from omnitrunk.engine.evaluate import EvaluateConfig
from omnitrunk.engine.log import LogConfig
from omnitrunk.engine.optimizer import OptimizerConfig
from omnitrunk.models import MultiMAEConfig
from omnitrunk.models.modality import find_modality


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """The run as a whole."""

    folder: str = "runs/run"
    """Where config.toml, logs, checkpoints and samples go; a folder that holds a checkpoint is resumed."""
    seed: int = 0
    """Key of everything random: initial weights, sample order, crops, masks."""
    steps: int = 1000
    """Optimizer steps of the whole run."""
    overwrite: bool = False
    """Delete what the folder holds of an earlier run and start afresh."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of matrix products; weights and optimizer state are float32 either way."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.folder:
            raise ValueError(f"run.steps = {self.steps} must be 1 or more and run.folder must not be empty")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that `omnitrunk train` reads."""

    run: RunSection = field(default_factory=RunSection)
    data: DataConfig = field(default_factory=DataConfig)
    model: MultiMAEConfig = field(default_factory=MultiMAEConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        if self.optimizer.warmup_steps > self.run.steps:
            raise ValueError(
                f"optimizer.warmup_steps = {self.optimizer.warmup_steps} is longer than run.steps = {self.run.steps}"
            )
        if self.model.image_shape != (self.data.size, self.data.size):
            raise ValueError(
                f"data.size = {self.data.size} gives square pictures, but model.image_size = {self.model.image_size}: "
                "set both to the same number"
            )


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file, then apply overrides such as ["--run.seed", "4"]. ValueError, in one line, for any mistake."""
    from jsonargparse import get_loader

    try:
        values = get_loader("toml")(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the configuration {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid TOML: {_one_line(error)}") from error
    return read(values, overrides, where=f"{path}: ")


def read(values: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "") -> RunConfig:
    """The configuration from nested dicts and overrides; `where` begins the message of an error in `values`."""
    from jsonargparse import ArgumentError

    parser = _parser()
    for name in _dotted(values):
        _check_name(name, where)
    try:
        parsed = parser.parse_object(dict(values))
    except ArgumentError as error:
        raise ValueError(where + _one_line(error)) from error
    for word in overrides:
        if word.startswith("--"):
            _check_name(word[2:].partition("=")[0], "")
    try:
        parsed = parser.parse_args(list(overrides), namespace=parsed)
    except ArgumentError as error:
        raise ValueError(_one_line(error)) from error
    return RunConfig(**{name: _section(name, kind, parsed[name]) for name, kind in get_type_hints(RunConfig).items()})


def dump(config: RunConfig) -> str:
    """The configuration as TOML; `load` gives the same object back. What is None is left out."""
    parts = []
    for section, fields in as_dict(config).items():
        lines = [f"{name} = {_toml(value)}" for name, value in fields.items() if value is not None]
        parts.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(parts) + "\n"


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration, or a section of one, as nested dicts and lists: what JSON gives back when it is stored."""
    return {
        name: as_dict(value) if dataclasses.is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for name, value in ((item.name, getattr(config, item.name)) for item in dataclasses.fields(config))
    }


def without_effect(config: RunConfig) -> list[str]:
    """A sentence for every option that differs from its default and yet changes nothing in this configuration."""
    rules = [
        ("optimizer.min_lr", config.optimizer.warmup_steps == config.run.steps, "the warm-up takes all of run.steps"),
        (
            "checkpoint.every",
            config.checkpoint.every > config.run.steps,
            "run.steps are fewer; the end is saved anyhow",
        ),
        ("log.images_every", config.log.images_every > config.run.steps, "run.steps are fewer"),
        ("model.alphas", len(config.model.inputs) == 1, "there is only one input to choose tokens from"),
        ("model.sample_tasks_uniformly", len(config.model.inputs) == 1, "there is only one input to choose"),
    ]
    random = config.data.source == "random"
    files = ("root", "train_split", "val_split", "crop_area", "flip", "bad_fraction", "threads")
    rules += [(f"data.{name}", random, 'data.source = "random" reads no files') for name in files]
    maps = any(find_modality(name).kind == "classes" for name in (*config.model.inputs, *config.model.outputs))
    fields = ("semseg_classes", "class_embedding_width", "label_smoothing")
    rules += [(f"model.{name}", not maps, "the model has no class map") for name in fields]
    return [f"{name} has no effect: {why}" for name, idle, why in rules if idle and _is_set(config, name)]


def _is_set(config: RunConfig, name: str) -> bool:
    section, _, item = name.partition(".")
    part = getattr(config, section)
    default = next(entry.default for entry in dataclasses.fields(part) if entry.name == item)
    return getattr(part, item) != default


def field_names() -> list[str]:
    """Every field as section.field."""
    return [
        f"{section}.{item.name}"
        for section, kind in get_type_hints(RunConfig).items()
        for item in dataclasses.fields(kind)
    ]


@functools.cache
def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(parser_mode="toml", exit_on_error=False, add_help=False)
    for name, kind in get_type_hints(RunConfig).items():
        parser.add_class_arguments(kind, name)
    return parser


def _section(name: str, kind: type, values: Any) -> Any:
    try:
        return kind(**values.as_dict())
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith(f"{name}.") else f"{name}: {said}") from error


def _dotted(values: Mapping[str, Any]) -> Iterator[str]:
    for section, fields in values.items():
        if isinstance(fields, Mapping):
            yield from (f"{section}.{name}" for name in fields)
        else:
            yield section


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(name)} = {_toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON's strings, numbers and booleans are TOML's, but for one control character that JSON does not escape.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _check_name(name: str, where: str) -> None:
    """ValueError with the nearest valid name unless `name` is section.field (or an entry inside a field)."""
    known = field_names()
    if ".".join(name.split(".")[:2]) in known:
        return
    elsewhere = [other for other in known if other.partition(".")[2] == name.rpartition(".")[2]]
    nearest = elsewhere or difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    raise ValueError(f"{where}unknown field {name}; did you mean {nearest[0]}?")


def _one_line(error: Exception) -> str:
    """What jsonargparse says, without line breaks and Python's type notation."""
    text = " ".join(str(error).split()).replace("typing.", "")
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r'^Parser key "([\w.]+)":', r"\1:", text)
    return re.sub(r"Expected an? (.+?)\.? Got value: (.+)", r"expected \1, got \2", text)
