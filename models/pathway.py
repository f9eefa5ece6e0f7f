"""The multimodal pathway: linear layers of one model joined with those of models of other modalities.

Every joined layer computes with W + sum_i lambda_i W'_i, where W'_i comes from the counterpart in auxiliary model i and
lambda_i is one learned number (Zhang et al. 2024, M2PT, sections 3.2 and 3.3). Biases, norms, tokens and heads of the
auxiliary models are not used. After training the sum is folded into W: the result is a plain model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from omnitrunk.kernels import gpu
from omnitrunk.kernels.pathway_linear import Pathway, effective_weight
from omnitrunk.models.layers.blocks import Linear
from omnitrunk.models.layers.trunk import Trunk

PLACES = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
"""The layers of a block that can be joined, and where they are."""


@dataclass(frozen=True, kw_only=True)
class PathwayConfig:
    """Which layers are joined, with which, and what of it is trained."""

    layers: tuple[str, ...] = tuple(PLACES)
    """Layers of every block: any of qkv, proj, fc1, fc2."""
    order: Literal["normal", "reversed"] = "normal"
    """Block i is joined with block i, or with the i-th from the end (the paper's control, table 6)."""
    scale: float = 0.0
    """Initial lambda."""
    train_scales: bool = True
    """Whether lambda is trained."""
    train_auxiliaries: bool = True
    """Whether W' is trained."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.layers if name not in PLACES]:
            raise ValueError(f"pathway.layers: a block has no layer {unknown[0]!r}; choose from {', '.join(PLACES)}")
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"pathway.layers = {self.layers} must name at least one layer, each one once")


class PathwayWeights(nn.Module):
    """The auxiliary weights and scales that one linear layer computes with besides its own."""

    def __init__(self, auxiliaries: Sequence[Tensor], config: PathwayConfig) -> None:
        super().__init__()
        self.auxiliaries = nn.ParameterList(
            nn.Parameter(weight.detach().clone(), requires_grad=config.train_auxiliaries) for weight in auxiliaries
        )
        self.scales = nn.ParameterList(
            nn.Parameter(torch.full((1,), config.scale, device=weight.device), requires_grad=config.train_scales)
            for weight in auxiliaries
        )
        self._joined: Pathway | None = None
        self.paired = False
        """Whether the optimizer derives the gradients of both from that of the layer's own weight (adamw_)."""

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight (outputs, inputs), kept from call to call until one of its parts changes."""
        return effective_weight(self.joined_with(weight), gpu.autocast_dtype(weight), paired=self.paired)

    def joined_with(self, weight: Tensor) -> Pathway:
        """The tensors as the kernels take them; made once, as lists of parameters are slow to read."""
        if self._joined is None or self._joined.weight is not weight:
            self._joined = Pathway(weight, tuple(self.auxiliaries), tuple(self.scales))
        return self._joined


def join(trunk: Trunk, auxiliaries: Sequence[Mapping[str, Tensor]], config: PathwayConfig) -> None:
    """Join the layers of a trunk with those of auxiliary trunks, given by their state dicts ("0.attn.qkv.weight", ...).

    Raises ValueError where depths or widths differ: no block is left out in silence.
    """
    for number, auxiliary in enumerate(auxiliaries):
        depth = 1 + max((int(name.partition(".")[0]) for name in auxiliary), default=-1)
        if depth != len(trunk):
            raise ValueError(f"auxiliary {number} has {depth} blocks, the model {len(trunk)}: they must be equal")
    for block, name, layer in _layers(trunk, config.layers):
        partner = len(trunk) - 1 - block if config.order == "reversed" else block
        weights = [_weight(auxiliary, f"{partner}.{name}.weight", layer) for auxiliary in auxiliaries]
        layer.pathway = PathwayWeights([weight.to(layer.weight) for weight in weights], config)


def joined_layers(model: nn.Module) -> dict[str, Linear]:
    """The layers of a model that are joined, by name."""
    return {
        name: layer for name, layer in model.named_modules() if isinstance(layer, Linear) and layer.pathway is not None
    }


def scales(model: nn.Module) -> dict[str, list[float]]:
    """Every joined layer's scales, one for each auxiliary: how much the model uses of them. One read of the device."""
    joined = {name: tuple(layer.pathway.scales) for name, layer in joined_layers(model).items()}
    if not joined:
        return {}
    values = iter(torch.cat([scale.detach() for scales in joined.values() for scale in scales]).tolist())
    return {name: [next(values) for _ in scales] for name, scales in joined.items()}


def merge(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with every pathway folded into its layer's weight, summed in float32 or wider and rounded once."""
    merged = {name: value for name, value in state.items() if ".pathway." not in name}
    for name, scale in state.items():
        layer, found, number = name.partition(".pathway.scales.")
        if found:
            weight, auxiliary = merged[f"{layer}.weight"], state[f"{layer}.pathway.auxiliaries.{number}"]
            wide = torch.promote_types(weight.dtype, torch.float32)
            merged[f"{layer}.weight"] = weight.to(wide) + scale.to(wide) * auxiliary.to(wide)
    return {name: value.to(state[name].dtype) for name, value in merged.items()}


def _layers(trunk: Trunk, names: Sequence[str]) -> Iterator[tuple[int, str, Linear]]:
    for number, block in enumerate(trunk):
        for name in names:
            yield number, PLACES[name], block.get_submodule(PLACES[name])


def _weight(auxiliary: Mapping[str, Tensor], name: str, layer: Linear) -> Tensor:
    if name not in auxiliary:
        raise ValueError(f"the auxiliary model has no {name}: give the blocks of a model of the same kind")
    if auxiliary[name].shape != layer.weight.shape:
        shapes = tuple(auxiliary[name].shape), tuple(layer.weight.shape)
        raise ValueError(f"{name} of the auxiliary model is {shapes[0]}, but {shapes[1]} here: use models of one width")
    return auxiliary[name]
