"""Omnivore: one shifted-window trunk for pictures, clips and pictures with depth, and a head for each data set.

Girdhar et al. 2022. A batch is of one kind: it holds "rgb" (B, H, W, 3), "video" (B, T, H, W, 3), or "rgb" with "depth"
(B, H, W, 1). rgb and video are uint8, or floating and normalized; depth is floating, normalized disparity. B batch;
t, h, w tokens of a map along time, height and width, D width of the last stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.models.initialize import initialize
from omnitrunk.models.layers.blocks import Linear
from omnitrunk.models.layers.drop_path import sample_drop_scale
from omnitrunk.models.layers.dropout import dropout, dropout_keys
from omnitrunk.models.layers.window_trunk import WindowTrunk
from omnitrunk.models.masking.plan import Plan
from omnitrunk.models.omnivore_config import OmnivoreConfig
from omnitrunk.models.parameter_groups import parameter_groups
from omnitrunk.models.tokenizers.volumes import VolumeTokenizer

KINDS = {("rgb",), ("video",), ("rgb", "depth"), ("depth",)}
"""What may be together in a batch."""


@dataclass(frozen=True, kw_only=True)
class OmnivorePlan(Plan):
    """What training drops of the samples of one batch; None where there is nothing of a kind."""

    drop_scale: Tensor | None
    """float32 (2 * blocks, B): factor of every residual branch."""
    dropout_keys: Tensor | None
    """int64 (B,): keys of the dropout before the head."""


class Omnivore(nn.Module):
    """The model of a configuration, its initial weights drawn from `seed`.

    Heads and tokenizers that a batch does not use get no gradient from it: theirs is None.
    """

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

    def plan(self, seed: int, positions: np.ndarray) -> OmnivorePlan:
        """What training drops of the samples at `positions` int64 (B,), keyed by (seed, position)."""
        positions = np.asarray(positions, dtype=np.int64)
        keys = dropout_keys(max(self.config.head_dropout.values(), default=0), 1, seed=seed, positions=positions)
        return OmnivorePlan(
            drop_scale=sample_drop_scale(self.config.drop_path, self.config.blocks, seed=seed, positions=positions),
            dropout_keys=None if keys is None else keys[0],
        )

    def forward(
        self, tensors: Mapping[str, Tensor], plan: OmnivorePlan, dataset: str | None = None
    ) -> dict[str, Tensor]:
        """The cross-entropy of a batch with "label" int64 (B,), under the name of its data set and under "loss".

        `dataset` may be left out where the model knows only one.
        """
        name = self._known(dataset)
        features = self._pooled(tensors, plan.drop_scale)
        if rate := self.config.head_dropout.get(name, 0):
            features = dropout(features, rate, plan.dropout_keys)
        logits = self.heads[name](features)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = functional.cross_entropy(logits, tensors["label"], label_smoothing=self.config.label_smoothing)
        return {name: loss, "loss": loss}

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

    def tokens(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The map of tokens of a batch, (B, t, h, w, width of the first stage).

        ValueError unless the batch is of one of the kinds that the model is made for.
        """
        found = tuple(name for name in ("rgb", "video", "depth") if name in tensors)
        if found not in KINDS or set(found) - set(self.config.inputs):
            said, known = " and ".join(found) or "no known modality", ", ".join(self.config.inputs)
            raise ValueError(f"a batch of {said} does not fit; give rgb, video, or rgb and depth (made for: {known})")
        color = self.tokenizers["rgb"]
        tokens = color.blank() if found == ("depth",) else color(tensors[found[0]])
        return tokens + self.tokenizers["depth"](tensors["depth"]) if "depth" in found else tokens

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Groups for the optimizer; see models.parameter_groups."""
        return parameter_groups(self, weight_decay)

    def flops(self, _plan: OmnivorePlan, dataset: str | None = None) -> float:
        """Matrix arithmetic of `forward`, 2 FLOP for each multiply-add, for a sample of the configured size."""
        name = self._known(dataset)
        used = self.tokenizers.values() if name in self.config.rgbd_sets else [self.tokenizers["rgb"]]
        embedding = sum(tokenizer.flops(*self.config.pixels(name)) for tokenizer in used)
        return embedding + self.trunk.flops(self.config.maps(name)[0]) + 2 * self.heads[name].weight.numel()

    def _pooled(self, tensors: Mapping[str, Tensor], drop_scale: Tensor | None = None) -> Tensor:
        """The mean (B, D) of the normed last map."""
        return self.trunk(self.tokens(tensors), drop_scale).mean(dim=(1, 2, 3))

    def _known(self, dataset: str | None) -> str:
        names = tuple(self.heads)
        if dataset is None and len(names) == 1:
            return names[0]
        if dataset not in names:
            said = "no data set was named" if dataset is None else f"there is no head for {dataset!r}"
            raise ValueError(f"{said}; choose one of {', '.join(names)}")
        return dataset
