"""What a run will need, from its configuration alone: parameters, memory and arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from torch import nn

from omnitrunk.engine.config import RunConfig
from omnitrunk.engine.datasets import DataSet, data_sets, dataset_name, micro_batches
from omnitrunk.models import ClassifierConfig, MultiMAEConfig, OmnivoreConfig, OmnivoreSegmenterConfig
from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.masking.mask_plan import MaskPlan
from omnitrunk.models.masking.plan import Plan

SAMPLES = 64
"""Samples whose masks give the average arithmetic."""
VECTORS = 9
"""Vectors of a token's width that a block keeps for its backward pass, besides the two inside its MLP.

The stream twice, both norms, query, key, value, the attention's output, and the branch.
"""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Figures of one process; bytes of device memory by use."""

    parameters: int
    flop: float
    """Per sample, forward and backward; visible tokens in the trunk, all positions in the decoders."""
    bytes: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """Everything together, at its worst moment."""
        return sum(self.bytes.values())


def estimate(config: RunConfig, model: nn.Module, *, processes: int) -> Estimate:
    """Estimate a run whose global batch `processes` share. Activations are a rule of thumb, the rest is exact."""
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    width = 2 if config.run.precision == "bf16" else 4
    values = 0.0
    for one in data_sets(config).values():
        rows = -(-one.data.batch // (processes * micro_batches(config, one)))
        values = max(values, rows * activation_values(config.model, sample_plan(config, model, one)))
    return Estimate(
        parameters=parameters,
        flop=flop_per_sample(config, model),
        bytes={
            "weights": 4 * parameters,
            "gradients": 4 * parameters,
            "moments": (4 if config.optimizer.kind == "sgd" else 8) * parameters,
            "average": 4 * parameters if config.optimizer.ema_decay else 0,
            "activations": round(values * width),
        },
    )


def flop_per_sample(config: RunConfig, model: nn.Module, samples: Mapping[str, float] | None = None) -> float:
    """Forward and backward, the mean over data sets that have so many `samples` in a step; equally many if None."""
    flops = {name: 3 * model.flops(sample_plan(config, model, one)) for name, one in data_sets(config).items()}
    return _mean(flops, samples)


def tokens_per_sample(config: RunConfig, samples: Mapping[str, float]) -> float:
    """Visible tokens, the mean over data sets that have so many `samples` in a step."""
    named = bool(getattr(config.model, "data_sets", None))
    tokens = {name: config.model.visible(name) if named else config.model.keep for name in data_sets(config)}
    return _mean(tokens, samples)


def _mean(values: Mapping[str, float], samples: Mapping[str, float] | None) -> float:
    weights = dict.fromkeys(values, 1.0) if samples is None or len(values) == 1 else samples
    return sum(value * weights[name] for name, value in values.items()) / sum(weights[name] for name in values)


def sample_plan(config: RunConfig, model: nn.Module, one: DataSet) -> Plan:
    """The plan of some samples of a data set."""
    positions = np.arange(SAMPLES, dtype=np.int64)
    name = dataset_name(config, one)
    return model.plan(config.run.seed, positions) if name is None else model.plan(config.run.seed, positions, name)


def size_text(size: float) -> str:
    """A number of bytes as people read it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.{1 if size < 100 * factor else 0}f} {unit}"
    return f"{size / 1e3:.1f} kB"


def activation_values(
    config: MultiMAEConfig | AutoencoderConfig | ClassifierConfig | OmnivoreConfig | OmnivoreSegmenterConfig,
    plan: Plan,
) -> float:
    """Numbers that a forward pass keeps for the backward pass, per sample."""
    if isinstance(config, MultiMAEConfig):
        return _multimae_values(config, plan)
    if isinstance(config, OmnivoreConfig):
        return _omnivore_values(config, plan.dataset)
    if isinstance(config, OmnivoreSegmenterConfig):
        return _omnivore_values(config.encoder_config, config.pictures) + config.head_values
    shape = getattr(config, "encoder_config", config)
    kept = shape.depth * (config.keep + shape.class_token) * shape.width
    if isinstance(config, AutoencoderConfig):
        kept += config.decoder_depth * (config.total_tokens + config.class_token) * config.decoder_width
    return kept * (VECTORS + 2 * shape.mlp_ratio) + getattr(config, "head_values", 0)


def _multimae_values(config: MultiMAEConfig, plan: MaskPlan) -> float:
    samples, length = len(plan.mask), config.visible_length
    per_width = VECTORS + 2 * config.mlp_ratio
    kept = config.depth * length * config.width * per_width
    for output in config.outputs:
        decoded = (config.decoder_depth + 1) * config.tokens(output) * config.decoder_width * per_width
        scored = len(plan.masked[output]) / samples * config.patch_values(output)
        kept += decoded + 3 * length * config.decoder_width + 2 * scored
    return kept


def _omnivore_values(config: OmnivoreConfig, dataset: str) -> float:
    """Of every block, or of one block at a time and what lies between them where blocks are computed again."""
    per_width = VECTORS + 2 * config.mlp_ratio
    values = [prod(size) * (config.width << stage) for stage, size in enumerate(config.maps(dataset))]
    if config.recompute:
        return (
            sum(2 * depth * value for depth, value in zip(config.depths, values, strict=True)) + values[0] * per_width
        )
    return sum(depth * value * per_width for depth, value in zip(config.depths, values, strict=True))
