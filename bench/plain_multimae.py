"""A plain PyTorch MultiMAE: the honest peer of the engine, written the way a researcher would from the paper.

Bachmann et al. 2022, "MultiMAE: Multi-modal Multi-task Masked Autoencoders", sections 3 and 4, with the conventions of
the released weights (state-dict names included). It works as the release works: all patches are projected and most of
them dropped, positions are interpolated in every forward pass, decoders run one after the other, predictions are full
images. Nothing in it comes from omnitrunk.kernels or omnitrunk.models, so it also serves as an independent check.

Shapes: B batch, N all tokens, n tokens of one task, K kept tokens, G global tokens, D encoder and d decoder width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from omnitrunk.bench.plain_layers import (
    ATTENTIONS,
    Block,
    CrossAttention,
    Mlp,
    frozen_positions,
    gather_rows,
    initialize,
    resized_positions,
)
from omnitrunk.bench.plain_losses import masked_mean, pixel_errors
from omnitrunk.bench.plain_masking import Selection, sample

CHANNELS = {"rgb": 3, "depth": 1, "norm_rgb": 3}
STRIDES = {"rgb": 1, "depth": 1, "semseg": 4, "norm_rgb": 1}
BASE_TASK = {"norm_rgb": "rgb"}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    """Sizes of a plain MultiMAE; the defaults are those of the published base model.

    `inputs` is also the order of the token sequence; `outputs` may name `norm_rgb`, rgb standardized by patch.
    `image_size` (height, width) in pixels fixes the stored position tables; `keep` is K, out of all N tokens.
    """

    inputs: tuple[str, ...] = ("rgb", "depth", "semseg")
    outputs: tuple[str, ...] = ("rgb", "depth", "semseg", "norm_rgb")
    image_size: tuple[int, int] = (224, 224)
    patch: int = 16
    classes: int = 133
    class_width: int = 64
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    global_tokens: int = 1
    decoder_width: int = 256
    decoder_depth: int = 2
    decoder_heads: int = 8
    keep: int = 98
    alphas: Mapping[str, float] = field(default_factory=lambda: {"rgb": 1.0, "depth": 1.0, "semseg": 1.0})
    attention: str = "eager"

    def __post_init__(self) -> None:
        """Refuses sizes that cannot work together."""
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention={self.attention!r} is unknown; use one of {', '.join(ATTENTIONS)}")
        if any(side % self.patch for side in self.image_size):
            raise ValueError(f"image_size={self.image_size} must be a multiple of patch={self.patch} on both sides")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens, the same for every task."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    def task_patch(self, task: str) -> int:
        """Side of a patch in pixels (or class-map cells) of one task."""
        return max(1, self.patch // STRIDES[task])

    def channels(self, task: str) -> int:
        """Predicted values per pixel of one task."""
        return self.classes if task == "semseg" else CHANNELS[task]


class PatchAdapter(nn.Module):
    """Image (B, C, H, W) -> tokens (B, n, D): a convolution over all patches, plus interpolated positions."""

    def __init__(self, task: str, config: PlainConfig) -> None:
        super().__init__()
        patch = config.task_patch(task)
        self.pos_emb = frozen_positions(config.width, config.grid)
        self.proj = nn.Conv2d(config.channels(task), config.width, patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, n, D)."""
        tokens = self.proj(image)
        return tokens.flatten(2).transpose(1, 2) + resized_positions(self.pos_emb, tokens.shape[-2:], "bicubic")


class ClassAdapter(nn.Module):
    """Class map int64 (B, h, w) -> tokens (B, n, D): an embedding per cell, then a convolution over all patches."""

    def __init__(self, task: str, config: PlainConfig) -> None:
        super().__init__()
        patch = config.task_patch(task)
        self.pos_emb = frozen_positions(config.width, config.grid)
        self.class_emb = nn.Embedding(config.classes, config.class_width)
        self.proj = nn.Conv2d(config.class_width, config.width, patch, stride=patch)

    def forward(self, classes: Tensor) -> Tensor:
        """(B, h, w) -> (B, n, D)."""
        tokens = self.proj(self.class_emb(classes).permute(0, 3, 1, 2))
        return tokens.flatten(2).transpose(1, 2) + resized_positions(self.pos_emb, tokens.shape[-2:], "bilinear")


class Decoder(nn.Module):
    """Predicts one task: cross-attention of its positions on the encoder's tokens, an MLP and a few blocks."""

    def __init__(self, task: str, config: PlainConfig) -> None:
        super().__init__()
        width, heads, attention = config.decoder_width, config.decoder_heads, config.attention
        self.source = BASE_TASK.get(task, task)
        self.inputs = config.inputs
        self.global_tokens = config.global_tokens
        self.patch = config.task_patch(task)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_emb = frozen_positions(width, config.grid)
        self.task_embeddings = nn.ParameterDict({name: torch.zeros(1, 1, width) for name in config.inputs})
        self.proj_context = nn.Linear(config.width, width)
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.context_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder = CrossAttention(width, heads, attention)
        self.out_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, config.mlp_ratio * width)
        self.decoder_transformer = nn.Sequential(
            *(Block(width, heads, config.mlp_ratio, attention) for _ in range(config.decoder_depth))
        )
        self.out_proj = nn.Linear(width, config.channels(task) * self.patch**2)

    def full_sequence(self, context: Tensor, ids_restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """All N tokens of all input tasks, mask tokens where nothing is visible, with positions and task embeddings."""
        batch, kept, _ = context.shape
        missing = self.mask_token.expand(batch, ids_restore.shape[1] - kept, -1)
        tokens = gather_rows(torch.cat([context, missing], dim=1), ids_restore)
        embeddings = [
            resized_positions(self.pos_emb, grid, "bilinear") + self.task_embeddings[task] for task in self.inputs
        ]
        return tokens + torch.cat(embeddings, dim=1)

    def queries(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, n, d): the task's own slice of the sequence; a task that is no input has mask tokens and positions."""
        if self.source not in self.inputs:
            positions = resized_positions(self.pos_emb, grid, "bilinear")
            return (self.mask_token + positions).expand(len(tokens), -1, -1)
        size = grid[0] * grid[1]
        start = self.inputs.index(self.source) * size
        return tokens[:, start : start + size]

    def forward(self, encoded: Tensor, selection: Selection, grid: tuple[int, int]) -> Tensor:
        """Encoder tokens (B, K + G, D) -> prediction image (B, C, h, w)."""
        context = self.proj_context(encoded)
        kept = context.shape[1] - self.global_tokens
        tokens = self.full_sequence(context[:, :kept], selection.ids_restore, grid)
        queries = self.queries(tokens, grid)
        context = torch.cat([gather_rows(tokens, selection.ids_keep), context[:, kept:]], dim=1)
        x = self.decoder(self.query_norm(queries), self.context_norm(context))
        x = x + self.mlp(self.out_norm(x))
        return self.to_image(self.out_proj(self.decoder_transformer(x)), grid)

    def to_image(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, n, C * p * p), each row laid out (channel, row, column), -> (B, C, h, w)."""
        tiles = x.unflatten(-1, (-1, self.patch, self.patch)).unflatten(1, grid)
        return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class PlainMultiMAE(nn.Module):
    """Adapters, a ViT over the kept tokens (global tokens last, no final norm), and one decoder per output."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config = config
        self.input_adapters = nn.ModuleDict(
            {task: (ClassAdapter if task == "semseg" else PatchAdapter)(task, config) for task in config.inputs}
        )
        self.global_tokens = nn.Parameter(torch.zeros(1, config.global_tokens, config.width))
        self.encoder = nn.Sequential(
            *(Block(config.width, config.heads, config.mlp_ratio, config.attention) for _ in range(config.depth))
        )
        self.output_adapters = nn.ModuleDict({task: Decoder(task, config) for task in config.outputs})
        initialize(self)

    def draw_selection(self, batch: int) -> Selection:
        """A random choice of K visible tokens for every sample."""
        size = self.config.grid[0] * self.config.grid[1]
        return sample(batch, dict.fromkeys(self.config.inputs, size), self.config.keep, self.config.alphas)

    def forward(self, images: Mapping[str, Tensor], selection: Selection) -> dict[str, Tensor]:
        """Normalized images (see `normalize`) -> output task -> prediction image (B, C, h, w)."""
        tokens = torch.cat([self.input_adapters[task](images[task]) for task in self.config.inputs], dim=1)
        kept = gather_rows(tokens, selection.ids_keep)
        encoded = self.encoder(torch.cat([kept, self.global_tokens.expand(len(kept), -1, -1)], dim=1))
        return {task: decoder(encoded, selection, self.config.grid) for task, decoder in self.output_adapters.items()}

    def losses(
        self, predictions: Mapping[str, Tensor], images: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Output task -> loss on its masked patches (all patches where it has no mask), and their sum as "loss"."""
        losses = {}
        for task, prediction in predictions.items():
            source = BASE_TASK.get(task, task)
            errors = pixel_errors(task, prediction, images[source], self.config.patch)
            losses[task] = masked_mean(errors, masks.get(source), self.config.grid)
        return losses | {"loss": torch.stack(list(losses.values())).sum()}


def standardize_depth(depth: Tensor) -> Tensor:
    """(B, 1, H, W) by the mean and unbiased variance of the middle 80 % of each sample's sorted values."""
    ordered = depth.flatten(1).sort(dim=1).values
    size = ordered.shape[1]
    middle = ordered[:, int(0.1 * size) : int(0.9 * size)]
    mean, variance = middle.mean(dim=1), middle.var(dim=1)
    return (depth - mean[:, None, None, None]) / (variance[:, None, None, None] + 1e-6).sqrt()


def normalize(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the data loader gives -> what the model takes.

    rgb uint8 (B, H, W, 3) -> float32 (B, 3, H, W) by ImageNet's mean and deviation; depth float32 (B, H, W, 1) ->
    standardized (B, 1, H, W); semseg uint8 (B, h, w) -> int64.
    """
    images = {}
    if "rgb" in batch:
        rgb = batch["rgb"].permute(0, 3, 1, 2).contiguous().float() / 255
        mean, std = (rgb.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        images["rgb"] = (rgb - mean) / std
    if "depth" in batch:
        images["depth"] = standardize_depth(batch["depth"].permute(0, 3, 1, 2).contiguous())
    if "semseg" in batch:
        images["semseg"] = batch["semseg"].long()
    return images
