"""Is this configuration right, will it fit, and how fast can it be? Answered without training and without a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from omnitrunk.engine.config import RunConfig, without_effect
from omnitrunk.engine.data import open_index
from omnitrunk.engine.data.faults import Faults
from omnitrunk.engine.data.loader import read_strides
from omnitrunk.engine.data.source import SampleSource
from omnitrunk.engine.description import check_description
from omnitrunk.engine.estimate import Estimate, estimate, size_text
from omnitrunk.engine.evaluate import check_evaluation
from omnitrunk.engine.hardware import GPUS, Gpu
from omnitrunk.engine.overview import model_line
from omnitrunk.engine.plans import check_pairs
from omnitrunk.models import build_model

ASSUMED_UTILIZATION = 0.4
"""Share of a GPU's peak that training is predicted to reach; good public engines report 0.35 to 0.5."""
PROBED = 32
"""Files of each modality that are read and verified."""


def check(config: RunConfig, *, gpus: int = 1, gpu: str | None = None) -> str:
    """A report of several lines; ValueError, in one line, for what cannot work on `gpus` devices of the kind `gpu`."""
    if gpu is not None and gpu.lower() not in GPUS:
        raise ValueError(f"--gpu {gpu} is not in the table; known: {', '.join(GPUS)}")
    parts = gpus * config.optimizer.accumulate
    if gpus < 1 or config.data.batch % parts:
        raise ValueError(
            f"data.batch = {config.data.batch} does not divide into {gpus} GPUs x optimizer.accumulate = "
            f"{config.optimizer.accumulate}; use a multiple of {max(parts, 1)}"
        )
    check_pairs(config.model, config.data.batch, parts)
    needs = estimate(config, build_model(config.model, config.run.seed), processes=gpus)
    lines = [f"warning: {warning}" for warning in without_effect(config)]
    lines.append(model_line(config, needs.parameters))
    read_bytes, data_line = _check_data(config)
    lines += [data_line, *_memory_lines(needs)]
    lines.append(f"compute  {needs.flop / 1e9:.3f} GFLOP per sample, forward and backward, visible tokens only")
    if gpu is not None:
        lines += _predictions(config, needs, GPUS[gpu.lower()], gpus, read_bytes)
    return "\n".join(lines)


def _check_data(config: RunConfig) -> tuple[float | None, str]:
    """Bytes of files per sample where there are any, and a line about the data set."""
    modalities = list(read_strides(config.model.reads, config.data.size))
    if config.data.source == "random":
        return None, "data     random, made on the device"
    if not config.data.root:
        return None, "data     data.root is not set: give --data.root to have the files checked"
    if not Path(config.data.root).is_dir():
        return None, f"data     warning: {config.data.root} is not on this machine, its files are not checked"
    check_description(config)
    check_evaluation(config)
    index = open_index(config.data, config.data.train_split, modalities)
    faults = Faults(config.data.bad_fraction)
    source = SampleSource(index, modalities, faults, seed=None, threads=1)
    samples = np.linspace(0, len(index) - 1, min(PROBED, len(index))).astype(np.int64)
    good = source.fetch(np.arange(len(samples)), samples)
    source.close()
    if not good:
        raise ValueError(
            f"none of {len(samples)} samples of {config.data.root} can be used: {next(iter(faults.named.items()))}"
        )
    size = sum(len(file) for sample in good for file in sample.files) / len(good)
    found = (
        f"data     {config.data.root}: {len(index):,} samples of {len(index.classes)} classes, {size / 1e3:.1f} kB each"
    )
    return size, found + (f"; {faults.bad} of {len(samples)} probed are bad" if faults.bad else "")


def _memory_lines(needs: Estimate) -> list[str]:
    parts = ", ".join(f"{use} {size_text(size)}" for use, size in needs.bytes.items() if size)
    return [f"memory   about {size_text(needs.total_bytes)} on each device: {parts} (activations are estimated)"]


def _predictions(config: RunConfig, needs: Estimate, gpu: Gpu, gpus: int, read_bytes: float | None) -> list[str]:
    peak = gpu.bf16 if config.run.precision == "bf16" else gpu.fp32
    rate = gpus * peak * ASSUMED_UTILIZATION / needs.flop
    hours = config.run.steps * config.data.batch / rate / 3600
    lines = [
        f"speed    {rate:,.0f} samples/s on {gpus} x {gpu.name}, {hours:,.1f} h for all steps: predicted, at "
        f"{ASSUMED_UTILIZATION:.0%} of {peak / 1e12:.0f} TFLOP/s each"
    ]
    if read_bytes is not None:
        lines.append(
            f"reading  {rate * read_bytes / 1e6:,.0f} MB/s of files to keep up: predicted, from the files' sizes"
        )
    if needs.total_bytes > 0.9 * gpu.memory:
        lines.append(
            f"warning: {size_text(needs.total_bytes)} may not fit a {gpu.name} of {size_text(gpu.memory)}: "
            "raise optimizer.accumulate"
        )
    return lines
