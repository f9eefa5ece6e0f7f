"""Joined layers (models.pathway) whose gradients the optimizer derives: one gradient per layer, whatever is joined.

Of W + sum_i lambda_i W'_i only G, the gradient of the sum, is computed, kept and sent to other processes. The update
derives those of W'_i and lambda_i from it, and writes the effective weight of the next step. It needs W itself to be
trained; where only the scales are, autograd computes their gradients as usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omnitrunk.kernels.adamw import Pathway
from omnitrunk.kernels.pathway_linear import combine_weights, written
from omnitrunk.models.pathway import joined_layers


@dataclass(frozen=True)
class PairedLayer:
    """One joined layer, and the dtype that its products are computed in."""

    weight: Tensor
    pathway: nn.Module
    dtype: torch.dtype

    def placed(self, places: Mapping[int, int]) -> Pathway:
        """What adamw_ is told: `places` maps id of a parameter -> its place in the lists."""
        joined = self.pathway.joined_with(self.weight)
        auxiliaries = tuple(places.get(id(weight), weight.detach()) for weight in joined.auxiliaries)
        scales = tuple(places[id(scale)] if scale.requires_grad else float(scale) for scale in joined.scales)
        (effective,) = combine_weights([joined], self.dtype)
        return Pathway(weight=places[id(self.weight)], auxiliaries=auxiliaries, scales=scales, effective=effective)

    def updated(self) -> None:
        """Declare the kept effective weight current: the update has just written it."""
        written(self.pathway.joined_with(self.weight), self.dtype)


def pair(model: nn.Module, precision: str) -> list[PairedLayer]:
    """The joined layers of a model whose own weight is trained, told to leave those gradients to the optimizer."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    layers = [layer for layer in joined_layers(model).values() if layer.weight.requires_grad]
    for layer in layers:
        layer.pathway.paired = True
    return [PairedLayer(layer.weight, layer.pathway, dtype) for layer in layers]


def derived_names(model: nn.Module) -> list[str]:
    """Names of the parameters that get no gradient of their own, which processes need not exchange."""
    return [
        f"{name}.pathway.{part}"
        for name, layer in joined_layers(model).items()
        if layer.pathway.paired
        for part, _ in layer.pathway.named_parameters()
    ]
