"""Stochastic gradient descent with momentum, on torch's multi-tensor functions (Sutskever et al. 2013, as in torch).

    g = grad * min(1, clip / (norm + 1e-6)) + weight_decay p        v = momentum v + g        p = p - lr lr_scale v

The decay passes through the momentum, unlike AdamW's. Whether to skip is decided on the device, as in AdamW.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omnitrunk.engine.optimizer import Optimizer, OptimizerConfig, at, gradient_norm
from omnitrunk.kernels.adamw.rule import clip_factor


class SGD(Optimizer):
    """The state of the optimizer: a float32 sum of past gradients for every parameter, and weight averages."""

    def __init__(self, groups: Sequence[dict[str, Any]], config: OptimizerConfig) -> None:
        """`groups` are those of Optimizer. Joined layers need nothing: autograd gives each weight its gradient."""
        super().__init__(groups, config)
        self.momentum = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.params]

    @torch.no_grad()
    def update(self, lr: float) -> tuple[Tensor, Tensor]:
        """See Optimizer.update."""
        moving = [place for place, parameter in enumerate(self.params) if parameter.grad is not None]
        grads = [self.params[place].grad for place in moving]
        norm = gradient_norm(grads)
        skipped = norm.isfinite().logical_not()
        if self._config.clip:
            grads = torch._foreach_mul(grads, clip_factor(norm, self._config.clip))
        given = dict(zip(moving, grads, strict=True))
        for (lr_scale, weight_decay), places in self._by_factors(moving).items():
            torch._fused_sgd_(
                at(places, self.params),
                [given[place] for place in places],
                at(places, self.momentum) if self._config.momentum else [],  # torch wants none then
                lr=lr * lr_scale,
                momentum=self._config.momentum,
                weight_decay=weight_decay,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,  # the sums begin at 0
                found_inf=skipped.float(),
            )
        self._average(range(len(self.params)), skipped)
        return norm, skipped

    def state_dict(self) -> dict[str, Tensor]:
        """The sums, under "momentum.NAME"."""
        return {f"momentum.{name}": value for name, value in zip(self.names, self.momentum, strict=True)}

    def _by_factors(self, moving: Sequence[int]) -> dict[tuple[float, float], list[int]]:
        """The places of parameters that share a learning rate and a weight decay."""
        groups: dict[tuple[float, float], list[int]] = {}
        for place in moving:
            groups.setdefault((self._lr_scales[place], self._decays[place]), []).append(place)
        return groups
