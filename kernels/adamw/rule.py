"""What adamw_ is told besides its tensors: the numbers of an update, and which gradients follow from others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CLIP_EPS = 1e-6


def clip_factor(norm: Tensor, max_norm: float | None) -> Tensor:
    """What gradients of this norm are multiplied by; 1 without a `max_norm`."""
    if max_norm is None:
        return torch.ones_like(norm)
    return (max_norm / (norm + CLIP_EPS)).clamp(max=1.0)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The numbers of an update: learning rate, a factor on it and a weight decay of each tensor, and what all share."""

    lr: float | Tensor
    lr_scales: Sequence[float]
    weight_decays: Sequence[float]
    betas: tuple[float, float]
    eps: float
    max_norm: float | None
    ema_decay: float

    @property
    def lrs(self) -> list[float]:
        """The learning rate of every tensor, as numbers on the host."""
        lr = float(self.lr)
        return [lr * scale for scale in self.lr_scales]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pathway:
    """A weight joined with auxiliary ones, W + sum_i lambda_i W'_i, of which only G, the gradient of the sum, is given.

    `weight` is the place of W in the lists of adamw_, where the gradient is G. Every auxiliary is the place of a
    parameter, or a frozen tensor. Every scale is the place of a parameter of one element (an int), or a fixed number (a
    float: 1 is a place, 1.0 a number). The parameters that are auxiliaries and scales have no gradients of their own:
    that of W'_i is lambda_i G, that of lambda_i is <G, W'_i>, both from before the update. `effective`, of any floating
    dtype, receives the sum of the updated weights, computed in float32 or wider and rounded once.
    """

    weight: int
    auxiliaries: tuple[int | Tensor, ...]
    scales: tuple[int | float, ...]
    effective: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.auxiliaries or len(self.auxiliaries) != len(self.scales):
            raise ValueError(f"a pathway takes one scale for each of its {len(self.auxiliaries)} auxiliary weights")

    def tensors(self, params: Sequence[Tensor]) -> list[tuple[Tensor, int | float]]:
        """Every auxiliary weight with its scale."""
        weights = [params[part] if isinstance(part, int) else part for part in self.auxiliaries]
        return list(zip(weights, self.scales, strict=True))

    def factors(self, params: Sequence[Tensor]) -> list[float]:
        """The present values of the scales, as numbers on the host."""
        return [float(params[scale]) if isinstance(scale, int) else scale for scale in self.scales]

    def derived(self) -> list[int]:
        """Places of the parameters whose gradients follow from that of the weight."""
        return [part for part in (*self.auxiliaries, *self.scales) if isinstance(part, int)]


def check(params: Sequence[Tensor], grads: Sequence[Tensor | None], pathways: Sequence[Pathway]) -> None:
    """Raise ValueError unless every parameter has a gradient or a pathway that it follows from, and all shapes fit."""
    derived = [place for pathway in pathways for place in pathway.derived()]
    places = [*derived, *(pathway.weight for pathway in pathways)]
    if len(set(places)) < len(places) or not all(0 <= place < len(params) for place in places):
        raise ValueError(f"pathways of adamw_ must name different places below {len(params)}, not {sorted(places)}")
    missing = {place for place, grad in enumerate(grads) if grad is None}
    if missing != set(derived):
        wrong = min(missing ^ set(derived))
        text = "a pathway derives it" if wrong in derived else "no pathway derives it"
        raise ValueError(f"grads[{wrong}] must {'be' if wrong in derived else 'not be'} None: {text}")
    for pathway in pathways:
        shape = params[pathway.weight].shape
        auxiliaries = [params[part] if isinstance(part, int) else part for part in pathway.auxiliaries]
        tensors = auxiliaries if pathway.effective is None else [*auxiliaries, pathway.effective]
        if any(tensor.shape != shape for tensor in tensors):
            raise ValueError(f"a pathway joins weights of one shape, not {[tuple(t.shape) for t in tensors]}")
        if any(params[scale].numel() != 1 for scale in pathway.scales if isinstance(scale, int)):
            raise ValueError("the scale of a pathway is a parameter of one element, or a float")


def materialize(params: Sequence[Tensor], grads: Sequence[Tensor | None], pathways: Sequence[Pathway]) -> list[Tensor]:
    """The gradients with those that follow from others written out, which the fast backends never do."""
    full = list(grads)
    for pathway in pathways:
        grad = grads[pathway.weight].to(params[pathway.weight].dtype)
        for auxiliary, (weight, scale) in zip(pathway.auxiliaries, pathway.tensors(params), strict=True):
            if isinstance(auxiliary, int):
                full[auxiliary] = grad * (params[scale] if isinstance(scale, int) else scale)
            if isinstance(scale, int):
                full[scale] = (grad.double() * weight.double()).sum().to(grad.dtype).view_as(params[scale])
    return full


def combined(params: Sequence[Tensor], pathway: Pathway) -> Tensor:
    """The effective weight W + sum_i lambda_i W'_i, in float32 or wider."""
    wide = torch.promote_types(params[pathway.weight].dtype, torch.float32)
    total = params[pathway.weight].to(wide)
    for weight, scale in pathway.tensors(params):
        total = total + (params[scale].to(wide) if isinstance(scale, int) else scale) * weight.to(wide)
    return total
