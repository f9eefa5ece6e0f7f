"""Point-MAE's own classifier: a class token and the maximum over the groups, then an MLP with batch norm and dropout.

Pang et al. 2022 (Point-MAE), section 4.2. B batch, G groups, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.models.checks import check_least, check_rate
from omnitrunk.models.initialize import initialize
from omnitrunk.models.layers.blocks import Linear
from omnitrunk.models.layers.dropout import dropout
from omnitrunk.models.layers.normed_linear import NormedLinear
from omnitrunk.models.masking.token_plan import all_tokens
from omnitrunk.models.point_tuning import PointPlan, PointTuningConfig, TunedEncoder

HIDDEN = 256
"""Width of both hidden layers of the head."""


@dataclass(frozen=True, kw_only=True)
class PointClassifierConfig(PointTuningConfig):
    """A classifier of clouds in the form of the Point-MAE release."""

    system: Literal["point_classifier"] = "point_classifier"
    """Name of the system, by which a recipe chooses it."""
    classes: int = 40
    """Classes that the head tells apart."""
    label_smoothing: float = 0.0
    """Share of the probability that the target spreads over all classes."""

    def check_sizes(self) -> None:
        """Raise ValueError where the head's sizes do not fit."""
        check_least(self, {"classes": 1})
        check_rate("label_smoothing", self.label_smoothing)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The name of the loss."""
        return ("class",)


class ClassHead(nn.Module):
    """The class token and its position, and the MLP from what the trunk makes of all tokens to logits."""

    def __init__(self, width: int, classes: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.class_token = nn.Parameter(torch.empty(width))
        self.class_position = nn.Parameter(torch.empty(width))
        self.fc1 = NormedLinear(2 * width, HIDDEN, act=functional.relu)
        self.fc2 = NormedLinear(HIDDEN, HIDDEN, act=functional.relu)
        self.fc3 = Linear(HIDDEN, classes)

    def forward(self, encoded: Tensor, keys: Tensor | None = None) -> Tensor:
        """Encodings (B, 1 + G, D), the class token first, and dropout keys (2, B) -> logits (B, classes)."""
        first, second = (None, None) if keys is None else keys
        pooled = torch.cat([encoded[:, :1], encoded[:, 1:].amax(dim=1, keepdim=True)], dim=2)
        hidden = dropout(self.fc1(pooled), self.rate, first)
        return self.fc3(dropout(self.fc2(hidden), self.rate, second)).squeeze(1)


class PointClassifier(TunedEncoder):
    """The model of a configuration, its initial weights drawn from `seed`."""

    dropouts = 2
    config: PointClassifierConfig

    def __init__(self, config: PointClassifierConfig, seed: int = 0) -> None:
        super().__init__(config)
        self.head = ClassHead(config.encoder_config.width, config.classes, config.dropout)
        initialize(self, seed)

    def forward(self, tensors: Mapping[str, Tensor], plan: PointPlan) -> dict[str, Tensor]:
        """The cross-entropy of a batch with "label" int64 (B,), under "class" and under "loss"."""
        logits = self._logits(self.prepare(tensors), plan.keep, plan.drop_scale, plan.dropout_keys)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = functional.cross_entropy(wide, tensors["label"], label_smoothing=self.config.label_smoothing)
        return {"class": loss, "loss": loss}

    def logits(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, classes) with nothing dropped."""
        sample = self.prepare(tensors)
        points = sample["points"]
        return self._logits(sample, all_tokens(len(points), self.config.total_tokens, points.device))

    def flops(self, plan: PointPlan) -> float:
        """Matrix arithmetic of `forward`, 2 FLOP for each multiply-add, for each cloud of a plan."""
        clouds, groups = plan.keep.shape
        head = self.head.fc1.linear, self.head.fc2.linear, self.head.fc3
        return self.encoder_flops(clouds, groups + 1) / clouds + 2 * sum(layer.weight.numel() for layer in head)

    def _logits(
        self,
        sample: Mapping[str, Tensor],
        index: Tensor,
        drop_scale: Tensor | None = None,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        tokens = _prepend(self.head.class_token, self.tokenizer(sample, index))
        position = _prepend(self.head.class_position, self.block_positions(sample, index))
        return self.head(self.blocks(tokens, drop_scale, position=position, norm=self.norm), dropout_keys)


def _prepend(first: Tensor, others: Tensor) -> Tensor:
    """(D,) before each of (B, G, D) -> (B, 1 + G, D)."""
    return torch.cat([first.to(others.dtype).expand(len(others), 1, -1), others], dim=1)
