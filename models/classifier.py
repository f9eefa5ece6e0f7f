"""A classifier: the trunk of a masked autoencoder on all tokens, their mean, a norm and a linear head.

He et al. 2022, section 4 (fine-tuning with global pooling). B batch, N tokens, C class tokens (0 or 1), D width. The
parameters of tokenizer and trunk have the names that they have in pre-training, so that its checkpoints fit; its final
norm and decoder are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from omnitrunk.models.augmentation.erasing import Eraser
from omnitrunk.models.augmentation.mixing import mix_pixels, mix_sounds, mixed_cross_entropy
from omnitrunk.models.augmentation.spans import blank
from omnitrunk.models.classifier_config import ClassifierConfig
from omnitrunk.models.classifier_plan import ClassifierPlan, draw_plan
from omnitrunk.models.encoder import Encoder
from omnitrunk.models.initialize import initialize
from omnitrunk.models.layers.blocks import LayerNorm, Linear
from omnitrunk.models.masking.token_plan import all_tokens
from omnitrunk.models.parameter_groups import parameter_groups


class Classifier(Encoder):
    """The model of a configuration, its initial weights drawn from `seed`."""

    def __init__(self, config: ClassifierConfig, seed: int = 0) -> None:
        encoder = config.encoder_config
        super().__init__(encoder)
        self.config = config
        self.norm = LayerNorm(encoder.width, encoder.norm_epsilon)
        self.head = Linear(encoder.width, config.classes)
        self.eraser = Eraser(prod(self.tokenizer.shape)) if config.erase else None
        initialize(self, seed)
        if config.train_positions:
            self._train_positions()

    def plan(self, seed: int, positions: np.ndarray) -> ClassifierPlan:
        """What training does to the samples at `positions` int64 (B,), keyed by (seed, position)."""
        return draw_plan(self.config, seed, np.asarray(positions, dtype=np.int64))

    def forward(self, tensors: Mapping[str, Tensor], plan: ClassifierPlan) -> dict[str, Tensor]:
        """The cross-entropy of a batch with "label" int64 (B,), under "class" and under "loss"."""
        logits = self.training_logits(tensors, plan)
        loss = mixed_cross_entropy(logits, tensors["label"], plan.mixing, label_smoothing=self.config.label_smoothing)
        return {"class": loss, "loss": loss}

    def training_logits(self, tensors: Mapping[str, Tensor], plan: ClassifierPlan) -> Tensor:
        """Logits (B, classes) of the samples as the plan changes them."""
        sample = self._blanked(self.prepare(self._mixed(self._erased(tensors, plan), plan)), plan)
        return self.head(self._pooled(sample, plan.keep, plan.drop_scale))

    def logits(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, classes) of the samples as they are, with every branch kept."""
        return self.head(self.features(tensors))

    def features(self, tensors: Mapping[str, Tensor], tasks: Sequence[str] | None = None) -> Tensor:
        """What the head sees, (B, D); `tasks` can only name the one input."""
        self.check_tasks(tasks)
        sample = self.prepare(tensors)
        first = next(iter(sample.values()))
        return self._pooled(sample, all_tokens(len(first), self.config.total_tokens, first.device))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Groups for the optimizer; see models.parameter_groups."""
        return parameter_groups(self, weight_decay, self.config.lr_scale)

    def freeze(self) -> None:
        """Freeze what the configuration says; to be called when pathways are in place."""
        if self.config.train == "head":
            for name, parameter in self.named_parameters():
                trained = name.startswith(("norm.", "head.")) or ".pathway.scales." in name
                parameter.requires_grad_(trained and parameter.requires_grad)

    def flops(self, plan: ClassifierPlan) -> float:
        """Matrix arithmetic of `forward`, 2 FLOP for each multiply-add, for each sample of a plan."""
        batch, tokens = plan.keep.shape
        length = tokens + (self.class_token is not None)
        blocks = self.blocks.flops(batch, length, batch * length)
        return (self.tokenizer.flops(batch, batch * tokens) + blocks) / batch + 2 * self.head.weight.numel()

    def _pooled(self, sample: Mapping[str, Tensor], index: Tensor, drop_scale: Tensor | None = None) -> Tensor:
        """The normed mean of the tokens int64 (B, N), the class token left out, (B, D)."""
        encoded = self.encode_tokens(sample, index, drop_scale)
        return self.norm(encoded[:, int(self.class_token is not None) :].mean(dim=1))

    def _erased(self, tensors: Mapping[str, Tensor], plan: ClassifierPlan) -> Mapping[str, Tensor]:
        if plan.erasing is None:
            return tensors
        (name,) = self.config.inputs
        return {**tensors, name: self.eraser(tensors[name], plan.erasing)}

    def _mixed(self, tensors: Mapping[str, Tensor], plan: ClassifierPlan) -> Mapping[str, Tensor]:
        if plan.mixing is None:
            return tensors
        (name,) = self.config.inputs
        mixture = mix_sounds(tensors, plan.mixing) if name == "audio" else mix_pixels(tensors[name], plan.mixing)
        return {**tensors, name: mixture}

    def _blanked(self, sample: Mapping[str, Tensor], plan: ClassifierPlan) -> Mapping[str, Tensor]:
        """Faithful: blank is the logarithm 0, louder than the average; else it is the average of the data set."""
        if plan.spans is None:
            return sample
        encoder = self.config.encoder_config
        value = -encoder.mean / (2 * encoder.std) if encoder.faithful else 0.0
        return {"audio": blank(sample["audio"], plan.spans, value)}

    def _train_positions(self) -> None:
        table = self.tokenizer.position
        del self.tokenizer.position
        self.tokenizer.position = nn.Parameter(table)
        if self.class_token is not None:
            self.class_position = nn.Parameter(torch.zeros_like(self.class_token))
