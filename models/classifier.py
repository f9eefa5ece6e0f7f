"""A classifier: the trunk of a masked autoencoder on all tokens, their mean, a norm and a linear head.

He et al. 2022, section 4 (fine-tuning with global pooling). B batch, N tokens, C class tokens (0 or 1), D width. The
parameters of tokenizer and trunk have the names that they have in pre-training, so that its checkpoints fit; its final
norm and decoder are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.models.classifier_config import ClassifierConfig
from omnitrunk.models.encoder import Encoder
from omnitrunk.models.initialize import initialize
from omnitrunk.models.layers.blocks import LayerNorm, Linear
from omnitrunk.models.layers.drop_path import sample_drop_scale
from omnitrunk.models.masking.token_plan import TokenPlan, all_tokens, make_token_plan
from omnitrunk.models.parameter_groups import parameter_groups


class Classifier(Encoder):
    """The model of a configuration, its initial weights drawn from `seed`."""

    def __init__(self, config: ClassifierConfig, seed: int = 0) -> None:
        encoder = config.encoder_config
        super().__init__(encoder)
        self.config = config
        self.norm = LayerNorm(encoder.width, encoder.norm_epsilon)
        self.head = Linear(encoder.width, config.classes)
        initialize(self, seed)
        if config.train_positions:
            self._train_positions()

    def plan(self, seed: int, positions: np.ndarray) -> TokenPlan:
        """All tokens of the samples at `positions` int64 (B,), and which branches are dropped."""
        config, positions = self.config, np.asarray(positions, dtype=np.int64)
        drop_scale = sample_drop_scale(config.drop_path, len(self.blocks), seed=seed, positions=positions)
        return make_token_plan(
            np.tile(np.arange(config.total_tokens), (len(positions), 1)), config.total_tokens, drop_scale=drop_scale
        )

    def forward(self, tensors: Mapping[str, Tensor], plan: TokenPlan) -> dict[str, Tensor]:
        """The cross-entropy of a batch with "label" int64 (B,), under "class" and under "loss"."""
        logits = self.head(self._pooled(self.prepare(tensors), plan.keep, plan.drop_scale))
        loss = functional.cross_entropy(
            logits.to(torch.promote_types(logits.dtype, torch.float32)),
            tensors["label"],
            label_smoothing=self.config.label_smoothing,
        )
        return {"class": loss, "loss": loss}

    def logits(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, classes) with every branch kept."""
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

    def flops(self, plan: TokenPlan) -> float:
        """Matrix arithmetic of `forward`, 2 FLOP for each multiply-add, for each sample of a plan."""
        batch, tokens = plan.keep.shape
        length = tokens + (self.class_token is not None)
        blocks = self.blocks.flops(batch, length, batch * length)
        return (self.tokenizer.flops(batch, batch * tokens) + blocks) / batch + 2 * self.head.weight.numel()

    def _pooled(self, sample: Mapping[str, Tensor], index: Tensor, drop_scale: Tensor | None = None) -> Tensor:
        """The normed mean of the tokens int64 (B, N), the class token left out, (B, D)."""
        encoded = self.encode_tokens(sample, index, drop_scale)
        return self.norm(encoded[:, int(self.class_token is not None) :].mean(dim=1))

    def _train_positions(self) -> None:
        table = self.tokenizer.position
        del self.tokenizer.position
        self.tokenizer.position = nn.Parameter(table)
        if self.class_token is not None:
            self.class_position = nn.Parameter(torch.zeros_like(self.class_token))
