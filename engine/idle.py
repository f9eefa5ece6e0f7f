"""Options that are set and yet change nothing: a run says so before it starts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from omnitrunk.engine.data import idle_fields
from omnitrunk.engine.datasets import data_sets
from omnitrunk.engine.evaluation.config import idle_evaluation
from omnitrunk.models import MultiMAEConfig
from omnitrunk.models.modality import find_modality

if TYPE_CHECKING:
    from omnitrunk.engine.config import RunConfig


def without_effect(config: RunConfig) -> list[str]:
    """A sentence for every option that differs from its default and yet changes nothing in this configuration."""
    rules = [
        ("optimizer.min_lr", config.optimizer.warmup_steps == config.run.steps, "the warm-up takes all of run.steps"),
        (
            "checkpoint.every",
            config.checkpoint.every > config.run.steps,
            "run.steps are fewer; the end is saved anyhow",
        ),
        ("log.images_every", config.log.images_every > config.run.steps, "run.steps are fewer"),
        ("model.alphas", len(config.model.inputs) == 1, "there is only one input to choose tokens from"),
        ("model.sample_tasks_uniformly", len(config.model.inputs) == 1, "there is only one input to choose"),
    ]
    on_cpu = config.run.device == "cpu" or not torch.cuda.is_available()
    rules.append(("run.cuda_graph", on_cpu, "the run is on a CPU"))
    rules += [
        (f"{one.section}.{name}", name in config.mixture.sets.get(one.name, ()) or not config.mixture.sets, why)
        for one in data_sets(config).values()
        for name, why in idle_fields(one.data, one.modalities).items()
    ]
    rules += [
        ("optimizer.warmup_lr", not config.optimizer.warmup_steps, "optimizer.warmup_steps is 0"),
        ("optimizer.final_lr", not config.optimizer.cooldown_steps, "optimizer.cooldown_steps is 0"),
        ("optimizer.momentum", config.optimizer.kind != "sgd", "optimizer.kind is not sgd"),
        ("optimizer.betas", config.optimizer.kind == "sgd", "optimizer.kind is sgd"),
        ("optimizer.eps", config.optimizer.kind == "sgd", "optimizer.kind is sgd"),
        ("mixture.batches", not config.mixture.sets, "mixture.sets is empty"),
    ]
    rules += [(f"model.{name}", True, why) for name, why in getattr(config.model, "idle", dict)().items()]
    rules += [(f"evaluate.{name}", True, why) for name, why in idle_evaluation(config).items()]
    fields = ("layers", "order", "scale", "train_scales", "train_auxiliaries")
    rules += [(f"pathway.{name}", not config.pathway.auxiliaries, "pathway.auxiliaries is empty") for name in fields]
    maps = any(find_modality(name).kind == "classes" for name in config.model.reads)
    idle = isinstance(config.model, MultiMAEConfig) and not maps
    fields = ("semseg_classes", "class_embedding_width", "label_smoothing")
    rules += [(f"model.{name}", idle, "the model has no class map") for name in fields]
    return [f"{name} has no effect: {why}" for name, idle, why in rules if idle and _is_set(config, name)]


def _is_set(config: RunConfig, name: str) -> bool:
    section, _, item = name.partition(".")
    if section == "mixture" and item.startswith("sets."):
        return True  # what stands there is a difference
    part = getattr(config, section)
    return any(getattr(part, item) != entry.default for entry in dataclasses.fields(part) if entry.name == item)
