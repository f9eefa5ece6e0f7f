"""Omnivore: one shifted-window trunk for pictures, clips and pictures with depth, and a head for each data set.

Girdhar et al. 2022. A batch is of one kind: it holds "rgb" (B, H, W, 3), "video" (B, T, H, W, 3), or "rgb" with "depth"
(B, H, W, 1). rgb and video are uint8, or floating and normalized; depth is floating, normalized disparity. B batch;
t, h, w tokens of a map along time, height and width, D width of the last stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from omnitrunk.models.augmentation.erasing import check_bytes, fill_boxes
from omnitrunk.models.augmentation.mixing import mix_pixels, mixed_cross_entropy
from omnitrunk.models.checks import choose_dataset
from omnitrunk.models.initialize import initialize
from omnitrunk.models.layers.blocks import Linear
from omnitrunk.models.layers.dropout import dropout
from omnitrunk.models.layers.window_trunk import WindowTrunk
from omnitrunk.models.omnivore_config import OmnivoreConfig
from omnitrunk.models.omnivore_plan import OmnivorePlan, draw_plan
from omnitrunk.models.parameter_groups import parameter_groups
from omnitrunk.models.tokenizers.volumes import VolumeTokenizer

KINDS = {("rgb",), ("video",), ("rgb", "depth"), ("depth",)}
"""What may be together in a batch."""
LENGTHS = {"rgb": 4, "video": 5, "depth": 4}
"""Dimensions of a batch of each."""


class Omnivore(nn.Module):
    """The model of a configuration, its initial weights drawn from `seed`.

    Heads and tokenizers that a batch does not use get no gradient from it: theirs is None.
    """

    OPTIONAL: ClassVar = ("heads.", "tokenizers.depth.")
    """Beginnings of the names of what is there for some data sets only: another model need not have it."""

    def __init__(self, config: OmnivoreConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        names = ("rgb", "depth") if config.rgbd_sets else ("rgb",)
        self.tokenizers = nn.ModuleDict({name: VolumeTokenizer(name, config.patch, config.width) for name in names})
        self.trunk = WindowTrunk(
            width=config.width,
            depths=config.depths,
            heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            window=config.window,
            faithful=config.faithful,
            recompute=config.recompute,
        )
        self.heads = nn.ModuleDict({name: Linear(config.features, count) for name, count in config.classes.items()})
        initialize(self, seed)

    def plan(self, seed: int, positions: np.ndarray, dataset: str | None = None) -> OmnivorePlan:
        """What training does to the samples of a data set at `positions` int64 (B,), keyed by (seed, position).

        `dataset` may be left out where the model knows only one.
        """
        return draw_plan(self.config, self._known(dataset), seed, np.asarray(positions, dtype=np.int64))

    def forward(self, tensors: Mapping[str, Tensor], plan: OmnivorePlan) -> dict[str, Tensor]:
        """The cross-entropy of a batch with "label" int64 (B,), under the name of its data set and under "loss"."""
        name, labels = self._known(plan.dataset), tensors["label"]
        self._check_labels(labels, name)
        logits = self.training_logits(tensors, plan)
        loss = mixed_cross_entropy(logits, labels, plan.mixing, label_smoothing=self.config.label_smoothing)
        return {name: loss, "loss": loss}

    def training_logits(self, tensors: Mapping[str, Tensor], plan: OmnivorePlan) -> Tensor:
        """Logits (B, classes) of the samples as the plan changes them."""
        name = self._known(plan.dataset)
        tokens = self.tokens(self._changed(tensors, plan), plan.blank)
        features = self.trunk(tokens, plan.drop_scale).mean(dim=(1, 2, 3))
        if rate := self.config.head_dropout.get(name, 0):
            features = dropout(features, rate, plan.dropout_keys)
        return self.heads[name](features)

    def logits(self, tensors: Mapping[str, Tensor], dataset: str | None = None) -> Tensor:
        """Logits (B, classes) of a data set's head for samples as they are, with every branch kept."""
        return self.heads[self._known(dataset)](self._pooled(tensors))

    def features(
        self, tensors: Mapping[str, Tensor], tasks: Sequence[str] | None = None, *, stage: int | None = None
    ) -> Tensor:
        """What the heads see, (B, D); or the map (B, t, h, w, width) that a `stage`, counted from 0, hands on.

        `tasks` names inputs of the batch, all of them if None. With "depth" alone its partner is a blank picture.
        """
        if tasks is not None:
            if unknown := set(tasks) - set(self.config.inputs):
                raise ValueError(f"{min(unknown)!r} is no input of this model; choose from {self.config.inputs}")
            tensors = {name: tensors[name] for name in tasks}
        return self._pooled(tensors) if stage is None else self.trunk.map_of(self.tokens(tensors), stage)

    def tokens(self, tensors: Mapping[str, Tensor], blank: Tensor | None = None) -> Tensor:
        """The map of tokens of a batch, (B, t, h, w, width of the first stage); `blank` bool (B,) pictures count as 0.

        ValueError unless the batch is of one of the kinds that the model is made for.
        """
        found = self._kind(tensors)
        color = self.tokenizers["rgb"]
        tokens = color.blank() if found == ("depth",) else color(tensors[found[0]])
        if blank is not None:
            # A picture of zeros has the same token everywhere, the mean color's.
            tokens = torch.where(blank.view(-1, 1, 1, 1, 1), color.blank().to(tokens.dtype), tokens)
        return tokens + self.tokenizers["depth"](tensors["depth"]) if "depth" in found else tokens

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Groups for the optimizer; see models.parameter_groups."""
        return parameter_groups(self, weight_decay, self.config.lr_scale)

    def flops(self, plan: OmnivorePlan) -> float:
        """Matrix arithmetic of `forward`, 2 FLOP for each multiply-add, for a sample of the configured size."""
        name = self._known(plan.dataset)
        used = self.tokenizers.values() if name in self.config.rgbd_sets else [self.tokenizers["rgb"]]
        embedding = sum(tokenizer.flops(*self.config.pixels(name)) for tokenizer in used)
        return embedding + self.trunk.flops(self.config.maps(name)[0]) + 2 * self.heads[name].weight.numel()

    def _pooled(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The mean (B, D) of the normed last map."""
        return self.trunk(self.tokens(tensors)).mean(dim=(1, 2, 3))

    def _changed(self, tensors: Mapping[str, Tensor], plan: OmnivorePlan) -> dict[str, Tensor]:
        """A batch with what the plan erases in it, then mixes; depth shares box and shares of its picture."""
        fills = {"rgb": 0, "video": 0, "depth": self.config.erased_depth}
        changed = {name: tensors[name] for name in fills if name in tensors}
        if plan.erasing is not None:
            for name in changed.keys() - {"depth"}:
                check_bytes(changed[name])
            changed = {name: fill_boxes(value, plan.erasing, fills[name]) for name, value in changed.items()}
        if plan.mixing is not None:
            changed = {name: mix_pixels(value, plan.mixing) for name, value in changed.items()}
        return changed

    def _kind(self, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
        """The modalities of a batch, which are one of KINDS; ValueError where they, or their shapes, do not fit."""
        found = tuple(name for name in ("rgb", "video", "depth") if name in tensors)
        if found not in KINDS or set(found) - set(self.config.inputs):
            said, known = " and ".join(found) or "no known modality", ", ".join(self.config.inputs)
            raise ValueError(f"a batch of {said} does not fit; give rgb, video, or rgb and depth (made for: {known})")
        for name in found:
            shape, last = tuple(tensors[name].shape), 1 if name == "depth" else 3
            if len(shape) != LENGTHS[name] or shape[-1] != last:
                wanted = "(B, T, H, W, 3)" if name == "video" else f"(B, H, W, {last})"
                raise ValueError(f"{name} has the shape {shape}; give {wanted}")
        if found == ("rgb", "depth") and tensors["rgb"].shape[:3] != tensors["depth"].shape[:3]:
            shapes = " and ".join(f"{name} {tuple(tensors[name].shape)}" for name in found)
            raise ValueError(f"{shapes} do not lie on each other; give both the same height and width")
        return found

    def _check_labels(self, labels: Tensor, dataset: str) -> None:
        """ValueError for a label that the head lacks; on a GPU it would have to be waited for, and is not looked at."""
        classes = self.config.classes[dataset]
        if labels.device.type == "cpu" and (outside := labels[(labels < 0) | (labels >= classes)]).numel():
            raise ValueError(
                f"the data set {dataset!r} has the label {outside[0]}, but its head {classes} classes, from 0; "
                "configure as many as there are"
            )

    def _known(self, dataset: str | None) -> str:
        return choose_dataset(self.heads, dataset)
