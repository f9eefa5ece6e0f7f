"""What pre-training and fine-tuning on one modality share: tokenizer, class token and trunk, under the same names.

B batch, C class tokens (0 or 1), K tokens asked for, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.layers.blocks import LayerNorm
from omnitrunk.models.layers.trunk import Trunk


class Encoder(nn.Module):
    """The encoder of a masked autoencoder's configuration, its parameters without values yet."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        token = nn.Parameter(torch.empty(config.width)) if config.class_token else None
        self.register_parameter("class_token", token)
        self.class_position: nn.Parameter | None = None
        """Added to the class token where positions are trained."""
        self.tokenizer = config.build_tokenizer()
        self.block_positions = config.build_block_positions()
        self.blocks = Trunk(**config.trunk)

    def prepare(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the parts read of a batch, checked against the configuration."""
        return self.tokenizer.prepare(tensors)

    def encode_tokens(
        self,
        sample: Mapping[str, Tensor],
        index: Tensor,
        drop_scale: Tensor | None = None,
        *,
        norm: LayerNorm | None = None,
    ) -> Tensor:
        """Encodings (B, C + K, D) of the tokens int64 (B, K) of a prepared batch, in that order, class token first."""
        tokens, position = self.tokenizer(sample, index), None
        if self.block_positions is not None:
            position = self.block_positions(sample, index)
        if self.class_token is not None:
            first = self.class_token if self.class_position is None else self.class_token + self.class_position
            tokens = torch.cat([first.expand(len(tokens), 1, -1), tokens], dim=1)
        return self.blocks(tokens, drop_scale, position=position, norm=norm)

    def check_tasks(self, tasks: Sequence[str] | None) -> None:
        """ValueError where `tasks` names anything but the one input."""
        if unknown := set(tasks or ()) - set(self.config.inputs):
            raise ValueError(f"{min(unknown)!r} is no input of this model; choose {self.config.inputs[0]!r}")
