"""`omnitrunk convert`: weights in the layout of a release, or of timm's ViT, to ours and back.

Every key of the file and of the layout is accounted for; what is left over or missing is an error unless it is allowed
by name.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omnitrunk.engine import durable
from omnitrunk.engine.config import RunConfig, as_dict, load, read
from omnitrunk.engine.weights import JOINED, PARTS, Kind, Weights, open_weights, write_weights
from omnitrunk.models import find_system
from omnitrunk.models.official import m2pt, timm
from omnitrunk.models.official.parts import Layout
from omnitrunk.models.official.state_dicts import layout
from omnitrunk.models.official.transfer import Account, from_release, to_release
from omnitrunk.models.omnivore_config import RELEASED_SETS, OmnivoreConfig

Target = Literal["omnitrunk", "official", "timm"]
M2PT = "m2pt"
"""A classifier with joined layers: no system of its own here, but a layout of its own in the release."""
CONTAINERS = {"pointmae": "base_model", "omnivore": PARTS}
"""Where the releases keep what others keep under "model"."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for: a file, its system, and the names that the result is to have."""

    system: str
    source: Path
    output: Path
    target: Target = "omnitrunk"
    recipe: Path | None = None
    """Configuration that says the sizes; else that of the run, or stored in the file, or else the published sizes."""
    overrides: tuple[str, ...] = ()
    """Fields of the configuration, as on the command line."""
    allow: tuple[str, ...] = ()
    """Shell patterns of keys that may be left over or missing."""
    weights: Kind = "auto"
    report: Path | None = None
    """JSON file for the complete account."""


def convert(request: Request) -> str:
    """Convert a file; returns what to say about it. ValueError, in one line, where a key has no place."""
    weights = open_weights(request.source, request.weights)
    _check_outputs(request, weights)
    config, sizes = _config(request, weights)
    model, encoder_only = _model(request, config)
    parts = _layout(request, weights, config, model)
    if encoder_only and request.target != "omnitrunk" and any(name.startswith("head.") for name in weights.tensors):
        raise ValueError(f"{request.source} holds a {config.model.system}: convert it as one")
    try:
        tensors, account = (from_release if request.target == "omnitrunk" else to_release)(
            weights.tensors, parts, allow=request.allow, encoder_only=encoder_only or request.target == "timm"
        )
    except ValueError as error:
        raise ValueError(f"{request.source}: {error}, or --allow it by name") from error
    metadata = {"omnitrunk": request.target, "system": request.system, "config": json.dumps(as_dict(config))}
    container = CONTAINERS.get(request.system, "model") if request.target == "official" else "model"
    write_weights(request.output, tensors, metadata, container)
    if request.report is not None:
        durable.write_text(request.report, json.dumps(_report(request, weights, sizes, account), indent=1))
    lines = [f"{weights.path}: {weights.origin}", f"{request.system} to {request.target}, sizes of {sizes}"]
    lines += _table(account)
    if request.target == "timm":
        words = ", ".join(f"{name}={value!r}" for name, value in timm.arguments(model).items())
        lines.append(f"load it into timm.models.VisionTransformer({words})")
    return "\n".join([*lines, f"written to {request.output}"])


def _config(request: Request, weights: Weights) -> tuple[RunConfig, str]:
    """The configuration that says the sizes, and where it comes from."""
    if request.recipe is not None:
        return load(request.recipe, request.overrides), str(request.recipe)
    if weights.config is not None:
        where = "the run" if request.source.is_dir() else "the file's metadata"
        return read(weights.config, request.overrides, where=f"{weights.path}: "), where
    name = "classifier" if request.system == M2PT else find_system(request.system).config.system
    return read(_published(name, request.overrides), request.overrides), f"the published {request.system}"


def _published(system: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The values of a configuration of the published sizes, with what those ask for in other sections."""
    if system != "omnivore":
        parts = getattr(find_system(system).config(), "parts", 0)
        return {"model": {"system": system}, "data": {"parts": parts}}
    model = {"system": system, **RELEASED_SETS}
    return {"model": model, "mixture": {"sets": {name: {} for name in _data_sets(model, overrides)}}}


def _data_sets(model: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The data sets of an Omnivore, which overrides may change; none where those are mistakes, which others name."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(parser_mode="toml", exit_on_error=False, add_help=False)
    parser.add_class_arguments(OmnivoreConfig, "model")
    try:
        parsed = parser.parse_args(list(_of_model(overrides)), namespace=parser.parse_object({"model": model}))
    except ArgumentError:
        return []
    return [name for kind in ("image", "video", "rgbd") for name in parsed["model"][f"{kind}_sets"]]


def _of_model(overrides: Sequence[str]) -> Iterator[str]:
    """The words that are about the model."""
    words = iter(overrides)
    for word in words:
        if word.startswith("--model."):
            yield from (word,) if "=" in word else (word, next(words, ""))


def _check_outputs(request: Request, weights: Weights) -> None:
    """ValueError where a file to write is the one that is converted, or lies in the checkpoint that is."""
    source = weights.path.resolve()
    for output in filter(None, (request.output, request.report)):
        if source in (output.resolve(), *output.resolve().parents):
            raise ValueError(f"{output} would replace what is converted: give another name")


def _model(request: Request, config: RunConfig) -> tuple[Any, bool]:
    """The configuration of the model in the file, and whether it is but the encoder of a fine-tuning's recipe."""
    model, wanted = config.model, "classifier" if request.system == M2PT else request.system
    if model.system == wanted:
        return model, False
    encoder = getattr(model, "encoder_config", None)
    if encoder is not None and encoder.system == wanted:
        return encoder, True
    known = model.system if encoder is None else f"{model.system} of a {encoder.system}"
    raise ValueError(f"the configuration is that of a {known}, not of a {wanted}: give --config with the right recipe")


def _layout(request: Request, weights: Weights, config: RunConfig, model: Any) -> Layout:
    if request.target == "omnitrunk" and weights.layout == "omnitrunk":
        raise ValueError(f"{request.source} has our names already: add --to official or --to timm")
    if request.target == "timm":
        timm.arguments(model)
    if request.system == M2PT and request.target != "timm":
        m2pt.check_room(weights.tensors)
        return m2pt.layout(model, config.pathway.layers)
    if joined := next((name for name in weights.tensors if JOINED.search(name)), None):
        fix = f"omnitrunk merge {request.source} -o F.safetensors; to keep them apart, convert {M2PT} to official"
        raise ValueError(f"{request.source} has joined layers ({joined}): fold them first: {fix}")
    return layout(model)


def _table(account: Account) -> list[str]:
    """The account for people: how many keys, then which; those of a stack of blocks on one line."""
    groups = {name: getattr(account, name) for name in ("used", "dropped", "resized", "absent")}
    lines = ["  ".join(f"{name} {len(keys)}" for name, keys in groups.items())]
    lines += [f"note     {note}" for note in account.notes]
    lines += [f"resized  {key}: {_grid(old)} to {_grid(new)}" for key, (old, new) in account.resized.items()]
    lines += _stacked("dropped", [f"{key}: {why}" for key, why in account.dropped.items()])
    lines += _stacked("absent", [f"{key}: {why}" for key, why in sorted(account.absent.items())])
    return lines + _stacked("used", [f"{key} -> {', '.join(made)}" for key, made in account.used.items()])


def _stacked(title: str, lines: Sequence[str]) -> list[str]:
    counted = Counter(re.sub(r"\.\d+\.(?=norm|attn|mlp)", ".*.", line) for line in lines)
    return [f"{title:8} {line}" + (f" ({count} of them)" if count > 1 else "") for line, count in counted.items()]


def _grid(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


def _report(request: Request, weights: Weights, sizes: str, account: Account) -> dict[str, Any]:
    """The complete account, key by key."""
    asked = {name: str(getattr(request, name)) for name in ("system", "target", "source", "output")}
    return {**asked, "weights": weights.origin, "sizes": sizes, **dataclasses.asdict(account)}
