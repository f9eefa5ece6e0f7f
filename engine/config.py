"""The configuration of a run: one TOML file, any field of which can be overridden as `--section.field VALUE`.

Every section is a frozen dataclass that lives with the component it configures; this file only puts them side by side,
reads them and writes them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from omnitrunk.engine.checkpoint import CheckpointConfig
from omnitrunk.engine.data import DataConfig, MixtureConfig
from omnitrunk.engine.datasets import DataSet, data_sets
from omnitrunk.engine.evaluate import EvaluateConfig
from omnitrunk.engine.log import LogConfig
from omnitrunk.engine.messages import one_line
from omnitrunk.engine.optimizer import OptimizerConfig
from omnitrunk.engine.overrides import with_data_sets
from omnitrunk.engine.pathways import PathwaySection
from omnitrunk.models import MultiMAEConfig, find_system
from omnitrunk.models.autoencoder_config import AutoencoderConfig


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
    weights: str = ""
    """Run folder, checkpoint or file whose weights the model starts from; empty starts from random ones."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of matrix products; weights and optimizer state are float32 either way."""
    cuda_graph: bool = False
    """Start forward and backward pass with one call of the host: small models on a fast GPU wait for Python otherwise.
    Needs batches of one shape, as the masks of a single input give, and one process."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.folder:
            raise ValueError(f"run.steps = {self.steps} must be 1 or more and run.folder must not be empty")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that `omnitrunk train` reads."""

    run: RunSection = field(default_factory=RunSection)
    data: DataConfig = field(default_factory=DataConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    model: MultiMAEConfig | AutoencoderConfig = field(default_factory=MultiMAEConfig)
    """Which of the systems' configurations this is, `model.system` says."""
    pathway: PathwaySection = field(default_factory=PathwaySection)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        phases = {"warmup_steps": self.optimizer.warmup_steps, "cooldown_steps": self.optimizer.cooldown_steps}
        if sum(phases.values()) > self.run.steps:
            said = " and ".join(f"optimizer.{name} = {steps}" for name, steps in phases.items() if steps)
            raise ValueError(f"{said} {'are' if ' and ' in said else 'is'} longer than run.steps = {self.run.steps}")
        described = getattr(self.model, "encoder_config", self.model)
        for one in data_sets(self).values():
            self._check_shapes(one, described)
        parts = getattr(self.model, "parts", 0)
        if self.data.parts != parts:
            raise ValueError(f"data.parts = {self.data.parts}, but the model knows {parts} parts: set it to {parts}")
        silent = described is not self.model and not parts and not getattr(self.model, "drawn", False)
        if self.log.images_every and silent and not self.pathway.auxiliaries:
            raise ValueError(
                f"log.images_every = {self.log.images_every}: a classifier without pathways has nothing to draw; "
                "set it to 0"
            )
        if self.log.images_every and not getattr(self.model, "drawn", True) and not self.evaluate.retrieval:
            raise ValueError(
                f"log.images_every = {self.log.images_every}: there is nothing to draw of this model; set it to 0, or "
                "evaluate.retrieval to pairs of its modalities"
            )
        if self.run.cuda_graph and len(self.model.inputs) > 1:
            raise ValueError(
                "run.cuda_graph = true needs batches of one shape, but the visible tokens of several inputs are split "
                "anew in every batch: set it to false, or use one input"
            )

    def _check_shapes(self, one: DataSet, described: Any) -> None:
        """ValueError unless the samples of a data set are as large as the model is made for."""
        if self.model.image_shape not in (None, (one.data.size, one.data.size)):
            field = "image_size" if hasattr(self.model, "image_size") else "encoder.image_size"
            raise ValueError(
                f"{one.section}.size = {one.data.size} gives square pictures, but model.{field} is "
                "{} x {}: set both to the same number".format(*self.model.image_shape)
            )
        if one.data.copies > 1 and getattr(self.model, "mixes", False):
            raise ValueError(
                f"{one.section}.copies = {one.data.copies}: mixup and cutmix would mix a sample with itself; set "
                "copies to 1, or both of them to 0"
            )
        for modality, name in (("video", "frames"), ("audio", "sample_rate"), ("points", "points")):
            if modality in one.modalities and getattr(one.data, name) != getattr(described, name):
                raise ValueError(
                    f"{one.section}.{name} = {getattr(one.data, name)}, but the model's {name} = "
                    f"{getattr(described, name)}: set both to the same number"
                )


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file, then apply overrides such as ["--run.seed", "4"]. ValueError, in one line, for any mistake."""
    from jsonargparse import get_loader

    try:
        values = get_loader("toml")(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the configuration {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid TOML: {one_line(error)}") from error
    return read(values, overrides, where=f"{path}: ")


def read(values: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "") -> RunConfig:
    """The configuration from nested dicts and overrides; `where` begins the message of an error in `values`."""
    from jsonargparse import ArgumentError

    values, overrides = with_data_sets(values, overrides)
    kinds = section_kinds(_system(values, overrides))
    parser = _parser(kinds["model"])
    for name in _dotted(values):
        _check_name(name, kinds, where)
    try:
        parsed = parser.parse_object(dict(values))
    except ArgumentError as error:
        raise ValueError(where + one_line(error)) from error
    for word in overrides:
        if word.startswith("--"):
            _check_name(word[2:].partition("=")[0], kinds, "")
    try:
        parsed = parser.parse_args(list(overrides), namespace=parsed)
    except ArgumentError as error:
        raise ValueError(one_line(error)) from error
    return RunConfig(**{name: _section(name, kind, parsed[name]) for name, kind in kinds.items()})


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


def section_kinds(system: str) -> dict[str, type]:
    """The dataclass of every section, that of the model being the system's; ValueError where there is none."""
    return get_type_hints(RunConfig) | {"model": find_system(system).config}


def field_names(kinds: Mapping[str, type]) -> list[str]:
    """Every field as section.field."""
    return [f"{section}.{item.name}" for section, kind in kinds.items() for item in dataclasses.fields(kind)]


def _system(values: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """The system that is configured: before anything else, because it decides which fields there are."""
    words = [word for override in overrides for word in override.split("=", 1)]
    if "--model.system" in words[:-1]:
        return words[len(words) - words[::-1].index("--model.system")]
    model = values.get("model", {})
    return str(model.get("system", MultiMAEConfig.system)) if isinstance(model, Mapping) else MultiMAEConfig.system


@functools.cache
def _parser(model: type) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(parser_mode="toml", exit_on_error=False, add_help=False)
    for name, kind in (get_type_hints(RunConfig) | {"model": model}).items():
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


def _check_name(name: str, kinds: Mapping[str, type], where: str) -> None:
    """ValueError with the nearest valid name unless `name` is section.field (or an entry inside a field)."""
    known = field_names(kinds)
    if ".".join(name.split(".")[:2]) in known:
        return
    elsewhere = [other for other in known if other.partition(".")[2] == name.rpartition(".")[2]]
    nearest = elsewhere or difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    raise ValueError(f"{where}unknown field {name}; did you mean {nearest[0]}?")
