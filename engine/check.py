"""Is this configuration right, will it fit, and how fast can it be? Answered without training and without a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from omnitrunk.engine.config import RunConfig
from omnitrunk.engine.data import open_index
from omnitrunk.engine.data.faults import Faults
from omnitrunk.engine.data.loader import read_strides
from omnitrunk.engine.data.source import SampleSource
from omnitrunk.engine.datasets import DataSet, data_sets, micro_batches
from omnitrunk.engine.description import check_description
from omnitrunk.engine.estimate import Estimate, estimate, size_text
from omnitrunk.engine.evaluate import check_evaluation
from omnitrunk.engine.hardware import GPUS, Gpu
from omnitrunk.engine.idle import without_effect
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
    sets = data_sets(config)
    for one in sets.values():
        _check_batch(config, one, gpus)
    needs = estimate(config, build_model(config.model, config.run.seed), processes=gpus)
    lines = [f"warning: {warning}" for warning in without_effect(config)]
    lines.append(model_line(config, needs.parameters))
    found = [_check_data(config, one) for one in sets.values()]
    read_bytes = None if any(size is None for size, _ in found) else sum(size for size, _ in found) / len(found)
    lines += [*(line for _, line in found), *_memory_lines(needs)]
    lines.append(f"compute  {needs.flop / 1e9:.3f} GFLOP per sample, forward and backward, visible tokens only")
    if gpu is not None:
        lines += _predictions(config, needs, GPUS[gpu.lower()], gpus, read_bytes)
    return "\n".join(lines)


def _check_batch(config: RunConfig, one: DataSet, gpus: int) -> None:
    accumulate, batch = micro_batches(config, one), one.data.batch
    parts = gpus * accumulate
    if gpus < 1 or batch % parts:
        field = f"mixture.accumulate.{one.name}" if one.name in config.mixture.accumulate else "optimizer.accumulate"
        raise ValueError(
            f"{one.section}.batch = {batch} does not divide into {gpus} GPUs x {field} = {accumulate}; use a multiple "
            f"of {max(parts, 1)}"
        )
    check_pairs(config.model, batch, parts)


def _check_data(config: RunConfig, one: DataSet) -> tuple[float | None, str]:
    """Bytes of files per sample where there are any, and a line about the data set."""
    data, modalities = one.data, list(read_strides(one.modalities, one.data.size))
    begin = f"data     {one.prefix}"
    if data.source == "random":
        return None, f"{begin}random, made on the device"
    if not data.root:
        return None, f"{begin}{one.section}.root is not set: give it to have the files checked"
    if not Path(data.root).is_dir():
        return None, f"{begin}warning: {data.root} is not on this machine, its files are not checked"
    check_description(config)
    check_evaluation(config)
    index = open_index(data, data.train_split, modalities)
    faults = Faults(data.bad_fraction)
    source = SampleSource(index, index.modalities, faults, seed=None, threads=1, least_frames=data.least_frames)
    samples = np.linspace(0, len(index) - 1, min(PROBED, len(index))).astype(np.int64)
    good = source.fetch(np.arange(len(samples)), samples)
    source.close()
    if not good:
        raise ValueError(
            f"none of {len(samples)} samples of {data.root} can be used: {next(iter(faults.named.items()))}"
        )
    size = sum(len(file) for sample in good for file in sample.files) / len(good)
    found = f"{begin}{data.root}: {len(index):,} samples of {len(index.classes)} classes, {size / 1e3:.1f} kB each"
    return size, found + (f"; {faults.bad} of {len(samples)} probed are bad" if faults.bad else "")


def _memory_lines(needs: Estimate) -> list[str]:
    parts = ", ".join(f"{use} {size_text(size)}" for use, size in needs.bytes.items() if size)
    return [f"memory   about {size_text(needs.total_bytes)} on each device: {parts} (activations are estimated)"]


def _predictions(config: RunConfig, needs: Estimate, gpu: Gpu, gpus: int, read_bytes: float | None) -> list[str]:
    peak = gpu.bf16 if config.run.precision == "bf16" else gpu.fp32
    rate = gpus * peak * ASSUMED_UTILIZATION / needs.flop
    batches = [one.data.batch for one in data_sets(config).values()]
    # Several data sets: as if all of them had equally many batches.
    samples = sum(batches) if config.mixture.batches == "mixed" else sum(batches) / len(batches)
    hours = config.run.steps * samples / rate / 3600
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
