"""Weights that a run starts from: those of another run, or of a file in the layout of a release.

Files are opened without running any code in them. Every tensor is accounted for: taken over, or left out for a reason
that is known; anything else is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from omnitrunk.engine import checkpoint

CONTAINERS = ("model", "module", "state_dict", "base_model")
"""Keys under which the releases keep a state dict."""
WRAPPINGS = re.compile(r"^(_orig_mod\.|module\.|encoder\.|backbone\.|MAE_encoder\.)+")
"""What stands before the names of an encoder's tensors there."""
PRETRAINING = re.compile(r"^(norm|decoder|objective)\.")
"""What pre-training has of its own."""
FINETUNING = re.compile(r"^(norm|head)\.|^class_position$|\.pathway\.")
"""What a model that starts from it has of its own."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a run folder, a checkpoint (averaged ones where there are any) or a file, by the names there."""
    path = Path(path)
    if path.is_dir():
        folder = checkpoint.find(path)
        averaged = checkpoint.read_tensors(folder, "ema")
        return checkpoint.read_tensors(folder, "model") if averaged is None else averaged
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise ValueError(f"{path} holds no weights that can be read: {' '.join(str(error).split())}") from error
    found = next((content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)), content)
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def read_blocks(path: str | Path) -> dict[str, Tensor]:
    """The trunk's tensors alone, "0.attn.qkv.weight" and so on: all that a pathway takes of a model."""
    blocks = {}
    for name, value in read_weights(path).items():
        plain = WRAPPINGS.sub("", name).replace("blocks.blocks.", "blocks.", 1)
        if plain.startswith("blocks."):
            blocks[plain.removeprefix("blocks.")] = value
    if not blocks:
        raise ValueError(f"{path} holds no transformer blocks: give a run, or the checkpoint of a ViT")
    return blocks


def start_from(model: nn.Module, path: str | Path) -> str:
    """Copy the weights of a pre-trained model; returns a line that says what was taken and what was left out.

    Takes names and shapes as they are; ValueError names the first tensor that has no place or no counterpart.
    """
    given, wanted = read_weights(path), model.state_dict()
    unused = [name for name in given if name not in wanted]
    missing = [name for name in wanted if name not in given]
    own = {name for name in wanted if FINETUNING.search(name)}
    if stray := [name for name in unused if not PRETRAINING.search(name)]:
        raise ValueError(f"{path} has {stray[0]}, which the model lacks: configure the model that it was made for")
    if lacking := [name for name in missing if name not in own]:
        raise ValueError(f"{path} lacks {lacking[0]}: give the weights of a model of the same system and size")
    taken = [name for name in wanted if name in given and not (name in own and given[name].shape != wanted[name].shape)]
    for name in taken:
        if given[name].shape != wanted[name].shape:
            shapes = tuple(given[name].shape), tuple(wanted[name].shape)
            raise ValueError(f"{path}: {name} is {shapes[0]}, but {shapes[1]} here: configure the same sizes")
    with torch.no_grad():
        for name in taken:
            wanted[name].copy_(given[name])
    return f"{path}: {len(taken)} tensors, without {len(given) - len(taken)} of its own; {len(missing)} start afresh"
