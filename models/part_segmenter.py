"""Part segmentation of point clouds in the form of the Point-MAE release: a part for every point of a shape.

Pang et al. 2022 (Point-MAE), section 4.2: features after three blocks of the trunk, carried from the groups' centers to
all points and joined with what they say about the whole cloud. B batch, N points, G groups, D width, F = 3 D features
of a group, P parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.models.initialize import initialize
from omnitrunk.models.layers.part_head import PartHead
from omnitrunk.models.masking.token_plan import all_tokens
from omnitrunk.models.point_tuning import PointPlan, PointTuningConfig, TunedEncoder


@dataclass(frozen=True, kw_only=True)
class PartSegmenterConfig(PointTuningConfig):
    """Tells the parts of shapes of known classes apart; the defaults are those of ShapeNetPart."""

    system: Literal["part_segmenter"] = "part_segmenter"
    """Name of the system, by which a recipe chooses it."""
    part_counts: tuple[int, ...] = (4, 2, 2, 4, 4, 3, 3, 2, 4, 2, 6, 2, 3, 3, 3, 3)
    """Parts of each class of shapes, in the order of the classes. Parts are numbered through: the first class has the
    parts from 0, the second goes on where it ends."""
    taps: tuple[int, int, int] = (4, 8, 12)
    """Blocks after which features are taken, counted from 1."""
    point_width: int = 1024
    """Features of a point; the two layers after them have a half and a quarter as many."""

    def check_sizes(self) -> None:
        """Raise ValueError where the head's sizes do not fit together or to the encoder."""
        if not self.part_counts or min(self.part_counts) < 1:
            raise ValueError(f"part_counts = {self.part_counts} must name at least one part for every class of shapes")
        depth = self.encoder_config.depth
        if not 1 <= self.taps[0] < self.taps[1] < self.taps[2] <= depth:
            raise ValueError(f"taps = {self.taps} must ascend from 1 or more to encoder.depth = {depth} or less")
        if self.point_width < 4 or self.point_width % 4:
            raise ValueError(f"point_width = {self.point_width} must be a multiple of 4")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The name of the loss."""
        return ("parts",)

    @property
    def classes(self) -> int:
        """Classes of shapes."""
        return len(self.part_counts)

    @property
    def parts(self) -> int:
        """Parts P of all classes together."""
        return sum(self.part_counts)

    @property
    def head_values(self) -> int:
        """Numbers of a cloud that the head keeps for its backward pass: around each normalization, and the dropout."""
        return self.encoder_config.points * (8 * self.encoder_config.width + 9 * self.point_width // 2)

    @property
    def first_parts(self) -> tuple[int, ...]:
        """The first part of each class, and P."""
        return (0, *accumulate(self.part_counts))


class PartSegmenter(TunedEncoder):
    """The model of a configuration, its initial weights drawn from `seed`."""

    dropouts = 1
    config: PartSegmenterConfig

    def __init__(self, config: PartSegmenterConfig, seed: int = 0) -> None:
        super().__init__(config)
        sizes = {"classes": config.classes, "parts": config.parts, "point_width": config.point_width}
        self.head = PartHead(config.encoder_config.width, len(config.taps), rate=config.dropout, **sizes)
        initialize(self, seed)
        self.register_buffer("foreign", _foreign_parts(config), persistent=False)

    def forward(self, tensors: Mapping[str, Tensor], plan: PointPlan) -> dict[str, Tensor]:
        """The cross-entropy of a batch with "parts" int64 (B, N) and "label" (B,), under "parts" and under "loss".

        It is that over all P parts, those of other classes included, and its mean over all points.
        """
        logits = self._logits(tensors, plan.keep, plan.drop_scale, plan.dropout_keys).flatten(0, 1)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = functional.cross_entropy(wide, tensors["parts"].flatten())
        return {"parts": loss, "loss": loss}

    def logits(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, N, P) of "points" (B, N, 3) with "label" (B,), nothing dropped."""
        points = tensors["points"]
        return self._logits(tensors, all_tokens(len(points), self.config.total_tokens, points.device))

    def segment(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The likeliest part of every point, int64 (B, N), among those of the shape's class."""
        foreign = self.foreign[tensors["label"]].unsqueeze(1)
        return self.logits(tensors).masked_fill(foreign, -torch.inf).argmax(dim=2)

    def flops(self, plan: PointPlan) -> float:
        """Matrix arithmetic of `forward`, 2 FLOP for each multiply-add, for each cloud of a plan."""
        clouds, groups = plan.keep.shape
        return self.encoder_flops(clouds, groups) / clouds + self.head.flops(self.tokenizer.points, groups)

    def _logits(
        self,
        tensors: Mapping[str, Tensor],
        index: Tensor,
        drop_scale: Tensor | None = None,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        sample = self.prepare(tensors)
        tokens, position = self.tokenizer(sample, index), self.block_positions(sample, index)
        taps = self.blocks.taps(tokens, drop_scale, position=position, after=self.config.taps, norm=self.norm)
        return self.head(torch.cat(taps, dim=2), sample["points"], sample["centers"], tensors["label"], dropout_keys)


def _foreign_parts(config: PartSegmenterConfig) -> Tensor:
    """Bool (classes, P): True where a part is none of the class."""
    counts = torch.tensor(config.part_counts)
    owner = torch.arange(config.classes).repeat_interleave(counts)
    return owner != torch.arange(config.classes)[:, None]
