"""Weights that a run starts from: those of another run, or of a file in the layout of a release.

Files are opened without running any code in them. Every tensor is accounted for: taken over, or left out for a reason
that is known; anything else is an error.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omnitrunk.engine import checkpoint, durable
from omnitrunk.engine.messages import remedy
from omnitrunk.models.classifier import Classifier
from omnitrunk.models.layers.offset_table import resized_offsets, square_side
from omnitrunk.models.layers.window_block import WindowAttention
from omnitrunk.models.official.transfer import WRAPPINGS

CONTAINERS = ("model", "module", "state_dict", "base_model")
"""Keys under which the releases keep a state dict."""
PARTS = ("trunk", "heads")
"""Keys under which Omnivore's release keeps two; here they begin the names of its tensors."""
PRETRAINING = re.compile(r"^(norm|decoder|objective|heads)\.")
"""What pre-training has of its own."""
FINETUNING = re.compile(r"^(norm|heads?)\.|^class_position$|\.pathway\.")
"""What a model that starts from it has of its own."""
SEVERAL = ("heads.", "tokenizers.", "decoders.")
"""Beginnings of names in which the next word says which one."""
JOINED = re.compile(r"\.pathway\.|\.cross_modal_scale$")
"""What a linear layer has that is joined with those of other models, here and in the release of M2PT."""
Kind = Literal["auto", "model", "ema"]
"""Which weights of a checkpoint: the averaged ones where there are any, the trained ones, the averaged ones."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of a run, a checkpoint or a file, and what is known about them."""

    path: Path
    tensors: dict[str, Tensor]
    origin: str
    """Which ones these are, in words."""
    config: dict[str, Any] | None = None
    """The configuration of the run that they come from, or that they were converted for, where it is stored."""
    layout: str = ""
    """"omnitrunk", "official" or "timm", where it is stored."""


def open_weights(path: str | Path, kind: Kind = "auto") -> Weights:
    """Open a run folder, a checkpoint or a file; ValueError, in one line, where no weights can be read."""
    path = Path(path)
    if path.is_dir():
        return _of_checkpoint(path, kind)
    if kind != "auto":
        raise ValueError(f"{path} is no run: a file holds one set of weights, leave --weights out")
    if not path.exists():
        raise ValueError(
            f"{path} holds no weights that can be read: there is nothing; give a run, a checkpoint or a file"
        )
    try:
        return _of_safetensors(path) if path.suffix == ".safetensors" else _of_torch(path)
    except UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {foreign[1]}, and files must not run code" if foreign else "it is no torch file"
        raise ValueError(f"{path} holds no weights that can be read: {what}") from error
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, LookupError, TypeError) as error:
        raise ValueError(f"{path} holds no weights that can be read: {' '.join(str(error).split())}") from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a run folder, a checkpoint (averaged ones where there are any) or a file, by the names there."""
    return open_weights(path).tensors


def read_blocks(path: str | Path) -> dict[str, Tensor]:
    """The trunk's tensors alone, "0.attn.qkv.weight" and so on: all that a pathway takes of a model."""
    blocks = {}
    for name, value in _plain(path).items():
        plain = WRAPPINGS.sub("", name).replace("blocks.blocks.", "blocks.", 1)
        if plain.startswith("blocks."):
            blocks[plain.removeprefix("blocks.")] = value
    if not blocks:
        raise ValueError(f"{path} holds no transformer blocks: give a run, or the checkpoint of a ViT")
    return blocks


def start_from(model: nn.Module, path: str | Path) -> str:
    """Copy the weights of a pre-trained model; returns a line that says what was taken and what was left out.

    Takes names and shapes as they are, but for tables of biases of other windows, which are resampled. What belongs to
    some data sets only, `model.OPTIONAL`, may be on one side alone. ValueError names the first tensor that has no place
    or no counterpart.
    """
    given, wanted = _plain(path), model.state_dict()
    fresh = _fresh(model, given, wanted, path)
    taken = [name for name in wanted if name in given and name not in fresh]
    resized = _fit_windows(model, given, taken)
    for name in taken:
        if given[name].shape != wanted[name].shape:
            shapes = tuple(given[name].shape), tuple(wanted[name].shape)
            raise ValueError(f"{path}: {name} is {shapes[0]}, but {shapes[1]} here: configure the same sizes")
    with torch.no_grad():
        for name in taken:
            wanted[name].copy_(given[name])
    left, afresh = ([name for name in names if name not in taken] for names in (given, wanted))
    return (
        f"{path}: {len(taken)} tensors, without {len(left)} of its own{_parts(left)}; {len(afresh)} start "
        f"afresh{_parts(afresh)}" + (f"; {resized} tables of biases resampled for other windows" if resized else "")
    )


def _fresh(
    model: nn.Module, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path
) -> Collection[str]:
    """Names on both sides whose values are not taken; ValueError where a name is on one side that should be on both."""
    optional = getattr(model, "OPTIONAL", ())
    own = {name for name in wanted if FINETUNING.search(name) or name.startswith(optional)}
    unused = [name for name in given if name not in wanted and not name.startswith(optional)]
    if stray := [name for name in unused if not PRETRAINING.search(name)]:
        raise ValueError(
            f"{path} has {stray[0]}, which the model lacks: configure the model that it was made for, "
            "or bring a release's file here with omnitrunk convert"
        )
    if lacking := [name for name in wanted if name not in given and name not in own]:
        raise ValueError(f"{path} lacks {lacking[0]}: give the weights of a model of the same system and size")
    fresh = {name for name in own if name in given and given[name].shape != wanted[name].shape}
    if isinstance(model, Classifier) and "head.weight" not in given:
        # It norms the mean of the tokens, pre-training every token: that norm is another one.
        fresh |= {name for name in wanted if name.startswith("norm.")}
    return fresh


def _fit_windows(model: nn.Module, given: dict[str, Tensor], taken: Collection[str]) -> int:
    """Resample the tables in `given` that are of other square windows than the model's; how many those are."""
    fitted = 0
    for layer, part in model.named_modules():
        name = f"{layer}.bias_table"
        if not isinstance(part, WindowAttention) or name not in taken:
            continue
        table = given[name]
        if len(table) != len(part.bias_table) and square_side(len(table), part.window[0]):
            given[name], fitted = resized_offsets(table, part.window), fitted + 1
    return fitted


def _parts(names: Sequence[str]) -> str:
    """Which parts of a model tensors belong to, in brackets; nothing where there are none."""
    parts = dict.fromkeys(".".join(name.split(".")[: 2 if name.startswith(SEVERAL) else 1]) for name in names)
    return f" ({', '.join(parts)})" if parts else ""


def write_weights(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], container: str | Sequence[str] = "model"
) -> None:
    """Write .safetensors with metadata, or .pth and .pt with the tensors under the key `container`; all or nothing.

    Of several containers each holds the tensors whose names begin with it, without that beginning.
    Raises ValueError for other names and OSError, with `path` as it was, where the disk does not take it.
    """
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(f"{path} must end in .safetensors, .pth or .pt")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: {'it is' if path.is_dir() else 'its parent is no'} folder")
    # Parts of one tensor share memory, which safetensors refuses; alone they can be written.
    alone = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    temporary = durable.aside(path)
    try:
        if path.suffix == ".safetensors":
            save_file(alone, temporary, dict(metadata))
        else:
            torch.save({container: alone} if isinstance(container, str) else _split(alone, container), temporary)
        durable.sync(temporary)
        temporary.rename(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot write {path}: {reason}; {remedy(error, path.parent)}") from error
    durable.sync(path.parent)


def _plain(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a model whose layers are its own: of a joined one, those alone would be another model."""
    tensors = read_weights(path)
    if joined := next((name for name in tensors if JOINED.search(name)), None):
        raise ValueError(
            f"{path} has joined layers ({joined}): fold them first: omnitrunk merge {path} -o F.safetensors"
        )
    return tensors


def _of_checkpoint(path: Path, kind: Kind) -> Weights:
    folder = checkpoint.find(path)
    state = checkpoint.read_state(folder)
    averaged = None if kind == "model" else checkpoint.read_average(folder)
    if kind == "ema" and averaged is None:
        raise ValueError(f"{folder} has no averaged weights: leave --weights out, or choose model")
    return Weights(
        path=folder,
        tensors=checkpoint.read_tensors(folder, "model") if averaged is None else averaged,
        origin=f"{'trained' if averaged is None else 'averaged'} weights of step {state['step']}",
        config=state["config"],
        layout="omnitrunk",
    )


def _of_safetensors(path: Path) -> Weights:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    layout = metadata.get("omnitrunk", "")
    config = json.loads(metadata["config"]) if layout and "config" in metadata else None
    return Weights(path=path, tensors=tensors, origin="safetensors", config=config, layout=layout)


def _of_torch(path: Path) -> Weights:
    # What the releases keep beside their weights are the arguments of the command: plain values in a Namespace.
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise ValueError(f"a {type(content).__name__} and no state dict")
    if all(isinstance(content.get(name), Mapping) for name in PARTS):
        content = {f"{part}.{name}": value for part in PARTS for name, value in content[part].items()}
    container = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
    found = content if container is None else content[container]
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"no tensors among {', '.join(map(str, content)) or 'nothing'}")
    origin = "torch file" if container is None else f"torch file, key {container!r}"
    beside = [str(name) for name in {**content, **found} if name != container and str(name) not in tensors]
    return Weights(path=path, tensors=tensors, origin=f"{origin}; beside it {', '.join(beside) or 'nothing'}")


def _split(tensors: Mapping[str, Tensor], parts: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    return {
        part: {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
        for part in parts
    }
