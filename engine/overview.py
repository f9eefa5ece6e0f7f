"""The lines a person checks before leaving a run alone: model, data, batch, horizon, machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from omnitrunk.engine import checkpoint, folder
from omnitrunk.engine.estimate import estimate, size_text

if TYPE_CHECKING:
    from omnitrunk.engine.build import Run
    from omnitrunk.engine.config import RunConfig
    from omnitrunk.engine.distributed import World


def overview(run: Run) -> str:
    """Five lines, and a sixth where the run is resumed."""
    config, world = run.config, run.world
    needs = estimate(config, run.model, processes=world.size)
    seen = config.run.steps * config.data.batch
    lines = [
        model_line(config, needs.parameters),
        f"data     {config.data.root or config.data.source}: {run.loader.dataset_size:,} samples, "
        f"fingerprint {run.loader.fingerprint[:12]}",
        f"batch    {config.data.batch} samples, on {world.size} process{'' if world.size == 1 else 'es'} in "
        f"{config.optimizer.accumulate} part{'' if config.optimizer.accumulate == 1 else 's'} each",
        f"horizon  {config.run.steps:,} steps = {seen:,} samples = {seen / run.loader.dataset_size:.1f} epochs; "
        f"learning rate {config.optimizer.lr:g} after {config.optimizer.warmup_steps:,} steps",
        f"machine  {_device(world)}, {config.run.precision}, about {size_text(needs.total_bytes)}; "
        f"writes {config.run.folder}",
    ]
    if run.start:
        saved = checkpoint.read_state(checkpoint.complete(Path(config.run.folder))[-1])["config"]
        changes = folder.differences(saved, config)
        lines.append(f"resumed  after step {run.start}" + (f"; changed: {', '.join(changes)}" if changes else ""))
    return "\n".join(lines)


def model_line(config: RunConfig, parameters: int) -> str:
    """What is trained."""
    model = config.model
    return (
        f"model    {model.system}, {parameters / 1e6:.2f} M parameters: {' '.join(model.inputs)} -> "
        f"{' '.join(model.outputs)}, {model.keep} of {model.total_tokens} tokens visible"
    )


def _device(world: World) -> str:
    if world.device.type == "cuda":
        return f"{world.size} x {torch.cuda.get_device_name(world.device)}"
    return f"CPU, {torch.get_num_threads()} threads" + (f" in each of {world.size} processes" if world.size > 1 else "")
