"""MultiMAE: masked autoencoding of several modalities at once (Bachmann et al. 2022).

A batch holds a few visible patches of each modality; one trunk encodes them together, and a small decoder for each
output reconstructs what was masked. Shapes: B batch, K visible of N tokens, G global tokens, S = K + G, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from omnitrunk.kernels.gather_tokens import gather_tokens
from omnitrunk.kernels.masked_patch_loss import masked_patch_loss
from omnitrunk.models.decoders.context import ContextProjection, at_precision
from omnitrunk.models.decoders.cross import Decoder
from omnitrunk.models.initialize import initialize
from omnitrunk.models.layers.standardize import robust_standardize
from omnitrunk.models.layers.trunk import Trunk
from omnitrunk.models.masking.mask_plan import MaskPlan, sample_plan
from omnitrunk.models.modality import find_modality
from omnitrunk.models.multimae_config import MultiMAEConfig
from omnitrunk.models.multimae_flops import forward_flops
from omnitrunk.models.parameter_groups import parameter_groups
from omnitrunk.models.tokenizers.maps import build_tokenizer

__all__ = ["MultiMAE", "MultiMAEConfig"]


class MultiMAE(nn.Module):
    """The model of a configuration, its initial weights drawn from `seed`."""

    def __init__(self, config: MultiMAEConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.global_tokens = nn.Parameter(torch.empty(1, config.global_tokens, config.width))
        self.tokenizers = nn.ModuleDict({name: build_tokenizer(name, config) for name in config.inputs})
        self.blocks = Trunk(width=config.width, depth=config.depth, heads=config.heads, mlp_ratio=config.mlp_ratio)
        self.context = ContextProjection(config)
        self.decoders = nn.ModuleDict({name: Decoder(name, config) for name in config.outputs})
        if config.task_balancer == "uncertainty":
            self.balancer = nn.Parameter(torch.empty(len(config.outputs)))
        self.refresh()
        self.register_load_state_dict_post_hook(lambda model, _: model.refresh())
        initialize(self, seed)

    def refresh(self) -> None:
        """Derive again what follows from the stored position tables; done whenever a state dict is loaded."""
        for module in (*self.tokenizers.values(), *self.decoders.values()):
            module.refresh()
        self.context.refresh(self.decoders)

    def plan(self, seed: int, positions: np.ndarray) -> MaskPlan:
        """The masks of the samples at `positions` int64 (B,), made on the host and keyed by (seed, position)."""
        return sample_plan(self.config, seed, positions)

    def prepare(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The maps that the model reads, checked against the configuration, depth standardized where asked for."""
        names = dict.fromkeys(find_modality(name).data for name in (*self.config.inputs, *self.config.outputs))
        return {name: self._prepare_map(name, tensors) for name in names}

    def forward(self, tensors: Mapping[str, Tensor], plan: MaskPlan) -> dict[str, Tensor]:
        """Losses of a batch: one scalar for each output, and their total under "loss".

        `tensors`: rgb uint8 (B, H, W, 3), depth float (B, H, W, 1), semseg integers (B, H / stride, W / stride).
        """
        maps = self.prepare(tensors)
        contexts = self.context(self._encode_visible(maps, plan), plan, self.decoders)
        losses = {output: self._loss(output, contexts[output], maps, plan) for output in self.config.outputs}
        return {**losses, "loss": self._total(losses)}

    def encode(self, tensors: Mapping[str, Tensor], tasks: Sequence[str] | None = None) -> Tensor:
        """Encodings (B, N + G, D) of all tokens of the inputs named by `tasks` (None: of all inputs), none masked."""
        names = self.config.inputs if tasks is None else tuple(tasks)
        if unknown := [name for name in names if name not in self.tokenizers]:
            raise ValueError(f"{unknown[0]!r} is no input of this model; choose from {', '.join(self.config.inputs)}")
        tokens = []
        for name in names:
            pixels = self._prepare_map(name, tensors)
            index = torch.arange(len(pixels) * self.config.tokens(name), device=pixels.device)
            tokens.append(self.tokenizers[name](pixels, index).unflatten(0, (len(pixels), -1)))
        return self.blocks(torch.cat([*tokens, self.global_tokens.expand(len(tokens[0]), -1, -1)], dim=1))

    def features(self, tensors: Mapping[str, Tensor], tasks: Sequence[str] = ("rgb",)) -> Tensor:
        """One vector for each sample, (B, D): the mean over the encodings of all tokens, global ones included."""
        return self.encode(tensors, tasks).mean(dim=1)

    def predict(self, tensors: Mapping[str, Tensor], plan: MaskPlan) -> dict[str, Tensor]:
        """Predictions of every output at all positions, (B, n, P), values in (row, column, channel or class) order."""
        maps = self.prepare(tensors)
        contexts = self.context(self._encode_visible(maps, plan), plan, self.decoders)
        return {output: self._decode(output, contexts[output], plan, None) for output in self.config.outputs}

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Groups for the optimizer; see models.parameter_groups."""
        return parameter_groups(self, weight_decay)

    def flops(self, plan: MaskPlan) -> float:
        """Forward FLOP for each sample of a plan; see models.flops."""
        return forward_flops(self.config, plan)

    def _prepare_map(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        if name not in tensors:
            raise ValueError(f"the batch has no {name!r}; add it to the data or take it out of inputs and outputs")
        pixels, shape = tensors[name], self.config.map_shape(name)
        if tuple(pixels.shape[1:3]) != shape:
            raise ValueError(
                f"{name} is {tuple(pixels.shape[1:3])}; the model takes {shape}: change image_size or resize"
            )
        robust = find_modality(name).standardize == "robust" and self.config.standardize_depth
        return robust_standardize(pixels) if robust else pixels

    def _encode_visible(self, maps: Mapping[str, Tensor], plan: MaskPlan) -> Tensor:
        """Encodings (B, S, D) of the visible tokens in the plan's order, then the global tokens."""
        batch = len(plan.ids_keep)
        rows = [tokenizer(maps[name], plan.visible[name]) for name, tokenizer in self.tokenizers.items()]
        rows.append(self.global_tokens.expand(batch, -1, -1).flatten(0, 1))
        tokens = gather_tokens(torch.cat(rows), plan.order).unflatten(0, (batch, -1))
        return self.blocks(tokens, plan.drop_scale)

    def _decode(self, output: str, context: Tensor, plan: MaskPlan, rows: Tensor | None) -> Tensor:
        with at_precision(context.device.type, output in self.config.fp32_outputs):
            return self.decoders[output](context, plan, rows)

    def _loss(self, output: str, context: Tensor, maps: Mapping[str, Tensor], plan: MaskPlan) -> Tensor:
        rows, weight = plan.masked[output], plan.masked_weight[output]
        if self.config.faithful and len(rows) == 0:  # the release's constant, from which no gradient flows
            return context.new_zeros(())
        modality, pred = find_modality(output), self._decode(output, context, plan, rows)
        loss = masked_patch_loss(
            pred,
            maps[modality.data],
            rows,
            weight.nan_to_num() if self.config.faithful else weight,
            patch=self.config.patch(output),
            loss=modality.loss,
            standardize=modality.standardize_patches,
            mean=modality.mean,
            std=modality.std,
            label_smoothing=self.config.label_smoothing,
        )
        return loss + _nan_gradient(pred, weight) if self.config.faithful else loss

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        stacked = torch.stack(list(losses.values()))
        if self.config.task_balancer == "none":
            return stacked.sum()
        balanced = torch.exp(-self.balancer) * stacked + self.balancer
        return torch.where(stacked == 0, 0, balanced).sum()


def _nan_gradient(pred: Tensor, weight: Tensor) -> Tensor:
    """A zero whose gradient is NaN in the rows of `pred` (Q, P) with weight (Q,) NaN, as the release's is there."""
    poisoned = (pred.sum(dim=1) * (weight - weight)).sum()
    return torch.where(torch.ones_like(poisoned, dtype=torch.bool), 0, poisoned)
