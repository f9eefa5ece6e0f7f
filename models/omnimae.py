"""OmniMAE: masked autoencoding of pictures and clips by one plain transformer (Girdhar et al. 2023).

B batch, N cubes of a sample, P values of a cube. A batch holds "rgb" or "video": pictures or clips, which are two data
sets with masks of their own. The weights are the same, whether a model is trained on one of them or on both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from omnitrunk.models.autoencoder import MaskedAutoencoder, draw_plan
from omnitrunk.models.checks import choose_dataset
from omnitrunk.models.masking.token_plan import TokenPlan


@dataclass(frozen=True, kw_only=True)
class OmniMAEPlan(TokenPlan):
    """The plan of a batch of one data set."""

    dataset: str
    """Its name: "rgb" or "video"."""


class OmniMAE(MaskedAutoencoder):
    """The masked autoencoder of pictures and clips: each batch is of the data set that its plan names."""

    def plan(self, seed: int, positions: np.ndarray, dataset: str | None = None) -> OmniMAEPlan:
        """The masks of the samples of a data set at `positions` int64 (B,), keyed by (seed, position)."""
        name = choose_dataset(self.config.data_sets, dataset)
        return OmniMAEPlan(**vars(draw_plan(replace(self.config, modalities=(name,)), seed, positions)), dataset=name)

    def forward(self, tensors: Mapping[str, Tensor], plan: OmniMAEPlan) -> dict[str, Tensor]:
        """The loss of a batch, under the name of its data set and under "loss"."""
        loss = super().forward(self._of(plan, tensors), plan)["loss"]
        return {plan.dataset: loss, "loss": loss}

    def predict(self, tensors: Mapping[str, Tensor], plan: OmniMAEPlan) -> dict[str, Tensor]:
        """Predictions (B, N, P) of all cubes, standardized."""
        (rows,) = super().predict(self._of(plan, tensors), plan).values()
        return {f"norm_{plan.dataset}": rows}

    def tokens_of(self, sample: Mapping[str, Tensor]) -> int:
        """Cubes N of what `prepare` returned."""
        (name,) = sample
        return self.config.tokens(name)

    def flops(self, plan: OmniMAEPlan) -> float:
        """Matrix arithmetic of `forward`, for each sample of a plan; a picture's cubes are projected for one frame."""
        total, visible = super().flops(plan), plan.keep.shape[1]
        if plan.dataset == "video":
            return total
        return total - self.tokenizer.flops(1, visible) * (1 - 1 / self.config.tubelet)

    def _of(self, plan: OmniMAEPlan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The pixels that the plan is made for."""
        if plan.dataset not in tensors:
            raise ValueError(f"the batch has no {plan.dataset!r}, which its plan is for; plan it for its own data set")
        return {plan.dataset: tensors[plan.dataset]}
