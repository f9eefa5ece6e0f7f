"""AdamW (Loshchilov and Hutter 2019) on plain lists of tensors, average of the weights and clip inside the same pass.

The moments start at zero, which the count of updates corrects for. As in torch, each parameter has its own: a head that
is used in one step of thirty, or first after thousands, would else take steps of several times the learning rate.
Parameters that have always moved together are a cohort, and share one count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omnitrunk.engine.optimizer import Optimizer, OptimizerConfig, at, gradient_norm
from omnitrunk.engine.pairing import PairedLayer
from omnitrunk.kernels import adamw_
from omnitrunk.kernels.adamw import Pathway
from omnitrunk.kernels.adamw.rule import clip_factor


class AdamW(Optimizer):
    """The state of the optimizer: float32 moments, weight averages and counts of updates, all on the device."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], config: OptimizerConfig, pathways: Sequence[PairedLayer] = ()
    ) -> None:
        """`groups` are those of Optimizer, `pathways` are what engine.pairing makes of joined layers."""
        super().__init__(groups, config)
        self._paired = list(pathways)
        self._pathways = self._placed(self.params)
        self._derived = {place for pathway in self._pathways for place in pathway.derived()}
        self.exp_avg = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.params]
        self.exp_avg_sq = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.params]
        # One tensor for each cohort, in the places of all its parameters.
        self._counts = [torch.zeros((), dtype=torch.float32, device=self.params[0].device)] * len(self.params)

    def update(self, lr: float) -> tuple[Tensor, Tensor]:
        """See Optimizer.update."""
        moving = [place for place, param in enumerate(self.params) if param.grad is not None or place in self._derived]
        resting = [] if len(moving) == len(self.params) else sorted(set(range(len(self.params))).difference(moving))
        cohorts = self._cohorts(moving, resting)
        if len(cohorts) == 1:
            result = self._advance(cohorts[0], lr, self._config.clip)
        else:
            assert not self._paired, "joined layers move in every step"
            result = self._clip(moving)
            for cohort in cohorts:
                self._advance(cohort, lr, clip=0)
        for layer in self._paired:
            layer.updated()
        self._average(resting, result[1])
        return result

    def state_dict(self) -> dict[str, Tensor]:
        """Moments under "exp_avg.NAME" and "exp_avg_sq.NAME"; "step" (parameters, 2): updates, number of the cohort."""
        moments = {f"exp_avg.{name}": value for name, value in zip(self.names, self.exp_avg, strict=True)}
        squares = {f"exp_avg_sq.{name}": value for name, value in zip(self.names, self.exp_avg_sq, strict=True)}
        known = [id(count) for count in self._counts]
        updates = torch.stack(self._counts)
        numbers = updates.new_tensor([known.index(count) for count in known])
        return moments | squares | {"step": torch.stack([updates, numbers], dim=1)}

    def load_state_dict(self, state: dict[str, Tensor], average: dict[str, Tensor] | None) -> None:
        """See Optimizer.load_state_dict."""
        super().load_state_dict(state, average)
        pairs = state["step"].expand(len(self.params), 2).tolist()
        counts = {cohort: self._counts[0].new_tensor(updates) for updates, cohort in pairs}
        self._counts = [counts[cohort] for _, cohort in pairs]

    def _cohorts(self, moving: Sequence[int], resting: Sequence[int]) -> list[list[int]]:
        """The places that move, by cohort; those that leave resting ones behind become a cohort of their own."""
        cohorts: dict[int, list[int]] = {}
        for place in moving:
            cohorts.setdefault(id(self._counts[place]), []).append(place)
        for split in cohorts.keys() & {id(self._counts[place]) for place in resting}:
            count = self._counts[cohorts[split][0]].clone()
            for place in cohorts[split]:
                self._counts[place] = count
        return list(cohorts.values())

    def _clip(self, moving: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Scale the gradients in place as one vector: (norm before, 1 where it was not finite and all became NaN)."""
        grads = [parameter.grad for parameter in at(moving, self.params)]
        norm = gradient_norm(grads)
        finite = norm.isfinite()
        factor = clip_factor(norm, self._config.clip or None)
        torch._foreach_mul_(grads, torch.where(finite, factor, torch.nan))  # so that no cohort moves
        return norm, finite.logical_not()

    def _advance(self, places: Sequence[int], lr: float, clip: float) -> tuple[Tensor, Tensor]:
        """Update the parameters of one cohort; as `update`."""
        params = at(places, self.params)
        return adamw_(
            [parameter.detach() for parameter in params],
            [parameter.grad for parameter in params],
            at(places, self.exp_avg),
            at(places, self.exp_avg_sq),
            self._counts[places[0]],
            lr=lr,
            betas=self._config.betas,
            eps=self._config.eps,
            weight_decay=at(places, self._decays),
            lr_scale=at(places, self._lr_scales),
            max_norm=clip or None,
            emas=at(places, self.ema) if self.ema else None,
            ema_decay=self._config.ema_decay,
            pathways=self._pathways if len(places) == len(self.params) else self._placed(params),
        )

    def _placed(self, params: Sequence[nn.Parameter]) -> list[Pathway]:
        """The pathways, with the places that their parameters have in a list."""
        places = {id(parameter): place for place, parameter in enumerate(params)}
        return [layer.placed(places) for layer in self._paired]
