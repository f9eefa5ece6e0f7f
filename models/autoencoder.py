"""The masked autoencoder of one modality: tokenize what is visible, encode it, decode what is not, compare.

He et al. 2022 for images; video, sound and point clouds differ in the parts that their configuration builds, not here.
B batch, N tokens, C class tokens (0 or 1), V visible, M masked, D width, P values predicted for a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.encoder import Encoder
from omnitrunk.models.initialize import initialize
from omnitrunk.models.layers.blocks import LayerNorm
from omnitrunk.models.layers.drop_path import sample_drop_scale
from omnitrunk.models.masking.token_plan import TokenPlan, all_tokens, make_token_plan
from omnitrunk.models.parameter_groups import parameter_groups


class MaskedAutoencoder(Encoder):
    """The model of a configuration, its initial weights drawn from `seed`."""

    def __init__(self, config: AutoencoderConfig, seed: int = 0) -> None:
        super().__init__(config)
        self.config = config
        self.norm = LayerNorm(config.width, config.norm_epsilon)
        self.decoder = config.build_decoder()
        self.objective = config.build_objective()
        initialize(self, seed)

    def plan(self, seed: int, positions: np.ndarray) -> TokenPlan:
        """The masks of the samples at `positions` int64 (B,), made on the host and keyed by (seed, position)."""
        return draw_plan(self.config, seed, positions)

    def forward(self, tensors: Mapping[str, Tensor], plan: TokenPlan) -> dict[str, Tensor]:
        """The loss of a batch, under the name of the output and under "loss"."""
        sample = self.prepare(tensors)
        prediction = self.decoder(self.encode_tokens(sample, plan.keep, plan.drop_scale, norm=self.norm), sample, plan)
        loss = self.objective(prediction, sample, plan.masked)
        return {self.config.outputs[0]: loss, "loss": loss}

    def encode(
        self, tensors: Mapping[str, Tensor], tasks: Sequence[str] | None = None, *, normed: bool = True
    ) -> Tensor:
        """Encodings (B, C + N, D) of all tokens, class token first; `tasks` can only name the one input.

        Not `normed`, they are what fine-tuning takes over: the final norm belongs to pre-training.
        """
        self.check_tasks(tasks)
        sample = self.prepare(tensors)
        first = next(iter(sample.values()))
        everything = all_tokens(len(first), self.tokens_of(sample), first.device)
        return self.encode_tokens(sample, everything, norm=self.norm if normed else None)

    def features(self, tensors: Mapping[str, Tensor], tasks: Sequence[str] | None = None) -> Tensor:
        """One vector for each sample, (B, D): the mean over the encodings of all tokens but the class token."""
        return self.encode(tensors, tasks)[:, int(self.config.class_token) :].mean(dim=1)

    def predict(self, tensors: Mapping[str, Tensor], plan: TokenPlan) -> dict[str, Tensor]:
        """Predictions of the output, (B, N, P); NaN at visible tokens where the decoder predicts masked ones only."""
        sample = self.prepare(tensors)
        encoded = self.encode_tokens(sample, plan.keep, plan.drop_scale, norm=self.norm)
        return {self.config.outputs[0]: self.decoder.everywhere(encoded, sample, plan)}

    def tokens_of(self, _sample: Mapping[str, Tensor]) -> int:
        """Tokens N of what `prepare` returned."""
        return self.config.total_tokens

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Groups for the optimizer; see models.parameter_groups."""
        return parameter_groups(self, weight_decay)

    def flops(self, plan: TokenPlan) -> float:
        """Matrix arithmetic of `forward`, 2 FLOP for each multiply-add, for each sample of a plan."""
        batch, visible = plan.keep.shape
        length = visible + int(self.config.class_token)
        trunk = self.blocks.flops(batch, length, batch * length)
        return (self.tokenizer.flops(batch, batch * visible) + trunk + self.decoder.flops(plan)) / batch


def draw_plan(config: AutoencoderConfig, seed: int, positions: np.ndarray) -> TokenPlan:
    """The plan of the samples at `positions` int64 (B,), made on the host and keyed by (seed, position)."""
    keyed = {"seed": seed, "positions": np.asarray(positions, dtype=np.int64)}
    decoder = {"rate": config.decoder_drop_path, "depth": config.decoder_depth, "purpose": "drop_path.decoder"}
    return make_token_plan(
        config.visible_tokens(**keyed),
        config.total_tokens,
        drop_scale=sample_drop_scale(config.drop_path, config.depth, **keyed),
        decoder_drop_scale=sample_drop_scale(**decoder, **keyed),
    )
