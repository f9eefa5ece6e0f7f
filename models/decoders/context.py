"""What all decoders see of the encoder: its tokens, projected for every decoder by one product, with their embeddings.

Shapes: B batch, S = K + G encoder tokens, D and d widths of encoder and decoders, O outputs, T inputs, N positions of
all inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.kernels.linear import linear
from omnitrunk.models.masking.mask_plan import MaskPlan
from omnitrunk.models.multimae_config import MultiMAEConfig


class ContextProjection(nn.Module):
    """One linear layer for all decoders; visible tokens also get the decoder's positions and task embeddings."""

    def __init__(self, config: MultiMAEConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(len(config.outputs) * config.decoder_width, config.width))
        self.bias = nn.Parameter(torch.empty(len(config.outputs) * config.decoder_width))

    def refresh(self, decoders: nn.ModuleDict) -> None:
        """Put the decoders' frozen tables side by side, (N + 1, O * d); the last row is 0, for global tokens."""
        table = torch.cat([decoder.input_positions() for decoder in decoders.values()], dim=1)
        self.register_buffer("table", functional.pad(table, (0, 0, 0, 1)), persistent=False)

    def forward(self, tokens: Tensor, plan: MaskPlan, decoders: nn.ModuleDict) -> dict[str, Tensor]:
        """Encoder tokens (B, S, D) -> the context (B, S, d) of every output."""
        embeddings, contexts = self._embeddings(plan, decoders), {}
        for outputs, part, full in self._spans(tokens.device.type):
            with at_precision(tokens.device.type, full):
                projected = linear(tokens.flatten(0, 1), self.weight[part], self.bias[part])
            pieces = (projected + embeddings[:, part]).split(self.config.decoder_width, dim=1)
            contexts |= {
                output: piece.contiguous().unflatten(0, tokens.shape[:2])
                for output, piece in zip(outputs, pieces, strict=True)
            }
        return contexts

    def _embeddings(self, plan: MaskPlan, decoders: nn.ModuleDict) -> Tensor:
        """Positions and task embeddings of the trunk's buffer for every decoder, (B * S, O * d)."""
        globals_last = functional.pad(plan.ids_keep, (0, self.config.global_tokens), value=len(self.table) - 1)
        positions = self.table.index_select(0, globals_last.flatten())
        tasks = torch.cat([decoder.task_embedding for decoder in decoders.values()], dim=1)
        with at_precision(tasks.device.type, full=True):
            # A product with the one-hot membership, because its backward pass is a product too, not a scatter.
            return torch.addmm(positions, plan.membership.to(tasks.dtype), tasks)

    def _spans(self, device: str) -> Iterator[tuple[list[str], slice, bool]]:
        """Runs of outputs of one precision, their rows of the weight, and whether they keep full precision."""
        autocast, start = torch.is_autocast_enabled(device), 0
        for full, group in groupby(self.config.outputs, lambda output: autocast and output in self.config.fp32_outputs):
            outputs = list(group)
            stop = start + len(outputs) * self.config.decoder_width
            yield outputs, slice(start, stop), full
            start = stop


def at_precision(device: str, full: bool) -> AbstractContextManager:
    """Switches autocast off where it is on and full precision is wanted; otherwise leaves everything as it is."""
    return torch.autocast(device, enabled=False) if full and torch.is_autocast_enabled(device) else nullcontext()
