"""Reads a trained model back from a run folder or a checkpoint, for the commands that look at one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from omnitrunk.engine import checkpoint
from omnitrunk.engine.build import load_model, make_model
from omnitrunk.engine.config import RunConfig, read
from omnitrunk.engine.distributed import choose_device


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model as a checkpoint holds it; the averaged weights where there are any."""

    folder: Path
    step: int
    config: RunConfig
    model: nn.Module
    device: torch.device


def restore(path: Path, overrides: Sequence[str] = ()) -> Trained:
    """Load a checkpoint, or the newest complete one of a run folder, with its own configuration and `overrides`.

    Raises ValueError where there is none, where it is damaged, or where the overrides describe another model.
    """
    folder = checkpoint.find(path)
    state = checkpoint.read_state(folder)
    config = read(state["config"], overrides, where=f"{folder}: ")
    device = choose_device(config.run.device)
    model = make_model(config, fresh=False)
    load_model(folder, state, config, model, name="ema" if (folder / "ema.safetensors").exists() else "model")
    return Trained(folder=folder, step=state["step"], config=config, model=model.to(device), device=device)
