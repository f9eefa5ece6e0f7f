"""The lines a person checks before leaving a run alone: model, data, batch, horizon, machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from omnitrunk.engine import checkpoint, folder
from omnitrunk.engine.data import JointLoader
from omnitrunk.engine.datasets import DataSet, data_sets, micro_batches
from omnitrunk.engine.estimate import estimate, size_text

if TYPE_CHECKING:
    from omnitrunk.engine.build import Run
    from omnitrunk.engine.config import RunConfig
    from omnitrunk.engine.distributed import World


def overview(run: Run) -> str:
    """Five lines and a sixth where the run is resumed; with several data sets three of these for each."""
    config, world = run.config, run.world
    needs = estimate(config, run.model, processes=world.size)
    lines = [
        model_line(config, needs.parameters),
        *(line for one in data_sets(config).values() for line in _data_lines(run, one)),
        f"rate     learning rate {config.optimizer.lr:g} after {config.optimizer.warmup_steps:,} steps",
        f"machine  {_device(world)}, {config.run.precision}, about {size_text(needs.total_bytes)}; "
        f"writes {config.run.folder}",
    ]
    if run.start:
        saved = checkpoint.read_state(checkpoint.complete(Path(config.run.folder))[-1])["config"]
        changes = folder.differences(saved, config)
        lines.append(f"resumed  after step {run.start}" + (f"; changed: {', '.join(changes)}" if changes else ""))
    return "\n".join(lines)


def _data_lines(run: Run, one: DataSet) -> list[str]:
    """What a data set holds, and how much of it the run takes."""
    config, processes = run.config, run.world.size
    loader = run.loader.loaders[one.name] if isinstance(run.loader, JointLoader) else run.loader
    rate = run.loader.samples_per_step.get(one.name, one.data.batch)
    seen, parts = config.run.steps * rate, micro_batches(config, one)
    return [
        f"data     {one.prefix}{one.data.root or one.data.source}: {loader.dataset_size:,} samples, "
        f"fingerprint {loader.fingerprint[:12]}",
        f"batch    {one.prefix}{one.data.batch} samples, on {processes} process{'' if processes == 1 else 'es'} in "
        f"{parts} part{'' if parts == 1 else 's'} each",
        f"horizon  {one.prefix}{config.run.steps:,} steps = {seen:,.0f} samples = "
        f"{seen / loader.rows_per_epoch:.1f} epochs",
    ]


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
