"""Segmentation of pictures with depth by an Omnivore: UPerNet on the maps of its four stages.

Girdhar et al. 2022, section 4.2 (NYUv2); Xiao et al. 2018. Maps are taken before they are merged, at strides 4, 8, 16
and 32, and normed. Tokenizers and trunk have the names that they have in pre-training, so that its checkpoints fit; the
trunk's own norm serves the last map. B batch; H, W pixels of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.models.initialize import initialize
from omnitrunk.models.layers.drop_path import sample_drop_scale
from omnitrunk.models.layers.upernet import UPerNet
from omnitrunk.models.masking.plan import Plan
from omnitrunk.models.omnivore import Omnivore
from omnitrunk.models.omnivore_segmenter_config import MAP, OmnivoreSegmenterConfig
from omnitrunk.models.parameter_groups import parameter_groups

IGNORED = 255
"""The label of pixels that have none."""


@dataclass(frozen=True, kw_only=True)
class SegmenterPlan(Plan):
    """What training drops of the samples of one batch."""

    drop_scale: Tensor | None
    """float32 (2 * blocks, B): factor of every residual branch; None where nothing is dropped."""


class OmnivoreSegmenter(nn.Module):
    """The model of a configuration, its initial weights drawn from `seed`."""

    OPTIONAL: ClassVar[tuple[str, ...]] = ("tokenizers.depth.",)
    """Beginnings of the names of what an Omnivore to start from may have and this one not, and the other way round."""

    def __init__(self, config: OmnivoreSegmenterConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        encoder = Omnivore(config.encoder_config, seed)
        self.tokenizers = nn.ModuleDict({name: encoder.tokenizers[name] for name in config.inputs})
        self.trunk = encoder.trunk
        self.head = UPerNet(config.widths, config.head_width, config.classes, config.pools)
        initialize(self, seed)

    def plan(self, seed: int, positions: np.ndarray) -> SegmenterPlan:
        """What training drops of the samples at `positions` int64 (B,), keyed by (seed, position)."""
        keyed = {"seed": seed, "positions": np.asarray(positions, dtype=np.int64)}
        return SegmenterPlan(
            drop_scale=sample_drop_scale(self.config.drop_path, self.config.encoder_config.blocks, **keyed)
        )

    def forward(self, tensors: Mapping[str, Tensor], plan: SegmenterPlan) -> dict[str, Tensor]:
        """The cross-entropy of a batch with "semseg" integers (B, H / 4, W / 4), under that name and under "loss".

        It is the mean over the labelled pixels of each picture, and the mean of these over the pictures: so it is the
        same in any number of micro-batches. The labels are as coarse as the logits, and nothing is resampled.
        """
        logits, labels = self._logits(tensors, plan.drop_scale), tensors[MAP].long()
        _check_labels(labels, logits)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).permute(0, 3, 1, 2)
        errors = functional.cross_entropy(wide, labels, ignore_index=IGNORED, reduction="none")
        counts = (labels != IGNORED).sum(dim=(1, 2)).clamp(min=1)
        loss = (errors.sum(dim=(1, 2)) / counts).mean()
        return {MAP: loss, "loss": loss}

    def logits(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, H / 4, W / 4, classes) of pictures, every branch kept."""
        return self._logits(tensors)

    def segment(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The likeliest class of every pixel of the map, int64 (B, H / 4, W / 4)."""
        return self.logits(tensors).argmax(dim=3)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Groups for the optimizer; see models.parameter_groups."""
        return parameter_groups(self, weight_decay)

    def flops(self, _plan: SegmenterPlan) -> float:
        """Matrix arithmetic of `forward`, 2 FLOP for each multiply-add, for a picture of the configured size."""
        embedding = sum(tokenizer.flops(1, *self.config.image_shape) for tokenizer in self.tokenizers.values())
        return embedding + self.trunk.flops((1, *self.config.maps[0])) + self.head.flops(self.config.maps)

    def _logits(self, tensors: Mapping[str, Tensor], drop_scale: Tensor | None = None) -> Tensor:
        tokens = reduce(torch.add, (tokenizer(tensors[name]) for name, tokenizer in self.tokenizers.items()))
        return self.head([found.squeeze(1) for found in self.trunk.maps(tokens, drop_scale)])


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    """ValueError where labels do not fit the logits; on a GPU, which would have to be waited for, only their shape."""
    if labels.shape != logits.shape[:3]:
        raise ValueError(
            f"{MAP} is {tuple(labels.shape)}, but the map that is found {tuple(logits.shape[:3])}: give a label for "
            "every patch of the pictures"
        )
    classes = logits.shape[3]
    if labels.device.type == "cpu" and (beyond := labels[(labels >= classes) & (labels != IGNORED)]).numel():
        raise ValueError(
            f"{MAP} has the class {beyond[0].item()}, but model.classes = {classes}: raise it, or label pixels of no "
            f"class {IGNORED}"
        )
