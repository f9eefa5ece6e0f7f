"""The tensors of a released M2PT (Zhang et al. 2024): a fine-tuned model, and beside every joined weight two more.

A layer has `aux_weight`, the weight of its counterpart in the auxiliary model, and `cross_modal_scale`, lambda. There
is room for one auxiliary model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from omnitrunk.models.classifier_config import ClassifierConfig
from omnitrunk.models.official import classifier
from omnitrunk.models.official.layers import same
from omnitrunk.models.official.parts import Computed, Part
from omnitrunk.models.pathway import PLACES

SECOND = re.compile(r"\.pathway\.auxiliaries\.[1-9]")
"""Names of the weights for which the release has no room."""


def layout(config: ClassifierConfig, layers: Collection[str] = tuple(PLACES)) -> Iterator[Part | Computed]:
    """All tensors of a fine-tuned model of these sizes whose `layers` (qkv, proj, fc1, fc2) are joined."""
    joined = tuple(f".{PLACES[name]}.weight" for name in layers)
    for part in classifier.layout(config):
        yield part
        if isinstance(part, Part) and part.ours.startswith("blocks.") and part.ours.endswith(joined):
            theirs, ours = part.official.removesuffix(".weight"), part.ours.removesuffix(".weight")
            yield replace(part, official=f"{theirs}.aux_weight", ours=f"{ours}.pathway.auxiliaries.0")
            yield same(f"{theirs}.cross_modal_scale", f"{ours}.pathway.scales.0", 1)


def check_room(state: Mapping[str, Tensor]) -> None:
    """ValueError where layers of our state dict are joined with more than one auxiliary model."""
    if any(SECOND.search(name) for name in state):
        raise ValueError("the released layout has room for one auxiliary model, here are more: fold them with merge")
