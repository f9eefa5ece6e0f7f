"""The [pathway] section: which other models' blocks the trunk is joined with (models.pathway)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from omnitrunk.engine.weights import read_blocks
from omnitrunk.models.pathway import PathwayConfig, join


@dataclass(frozen=True, kw_only=True)
class PathwaySection(PathwayConfig):
    """A PathwayConfig, and where the auxiliary models are."""

    auxiliaries: tuple[str, ...] = ()
    """Run folders, checkpoints or files of the models to join with; empty joins nothing."""


def attach(model: nn.Module, section: PathwaySection, *, weights: bool) -> None:
    """Join the trunk of a model as configured.

    Without `weights` the auxiliary weights are placeholders of the right shapes, for a checkpoint that holds them.
    """
    if section.auxiliaries:
        own = model.blocks.state_dict()
        join(model.blocks, [read_blocks(path) if weights else own for path in section.auxiliaries], section)
