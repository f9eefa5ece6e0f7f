"""A plain PyTorch Swin on pictures and clips: the honest peer of Omnivore's trunk, one module for each textbook box.

Liu et al. 2021, section 3 (Swin); Liu et al. 2022, section 3 (Video Swin); Girdhar et al. 2022, section 3 (Omnivore).
It works as papers and releases work: pictures are completed to clips of one patch, every block pads, rolls and cuts its
map into windows, scores are written down, bias and mask are dense. Nothing in it comes from omnitrunk.kernels or
omnitrunk.models, so it also serves as an independent check.

Shapes: B batch; T, H, W tokens of a map along time, height and width; D width, L tokens of a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnitrunk.bench.plain_layers import Mlp
from omnitrunk.bench.plain_windows import Triple, clip, merge, partition, relative_index, shift_mask


@dataclass(frozen=True, kw_only=True)
class PlainSwinConfig:
    """Sizes of a plain Swin; the defaults are those of Swin-T. `attention` is one of plain_windows.ATTENTIONS."""

    patch: Triple = (2, 4, 4)
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: Triple = (8, 7, 7)
    mlp_ratio: int = 4
    classes: int = 1000
    attention: str = "eager"


class PatchEmbedding(nn.Module):
    """A convolution over patches, then a norm; what is too short is completed with zeros at its far ends."""

    def __init__(self, config: PlainSwinConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.proj = nn.Conv3d(3, config.width, config.patch, stride=config.patch)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, clips: Tensor) -> Tensor:
        """Pixels (B, 3, T, H, W) -> tokens (B, T, H, W, D)."""
        time, height, width = (-extent % side for extent, side in zip(clips.shape[2:], self.patch, strict=True))
        tokens = self.proj(F.pad(clips, (0, width, 0, height, 0, time)))
        return self.norm(tokens.permute(0, 2, 3, 4, 1))


class WindowAttention(nn.Module):
    """Self-attention inside windows that are rows of a batch, with a bias for every offset."""

    def __init__(self, width: int, heads: int, window: Triple, attention: str) -> None:
        super().__init__()
        self.heads, self.window, self.attention = heads, window, attention
        rows = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.bias_table = nn.Parameter(torch.zeros(rows, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Windows (B * windows, L, D) and what is added to scores (windows, L, L) -> (B * windows, L, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias(x.shape[1])
        if self.attention == "sdpa":
            if mask is not None:
                bias = (bias + mask[:, None]).repeat(len(x) // len(mask), 1, 1, 1)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
            if mask is not None:
                scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
            mixed = scores.softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def bias(self, tokens: int) -> Tensor:
        """(1, heads, L, L): a window of fewer tokens has the biases of the first ones of a whole window."""
        index = relative_index(self.window)[:tokens, :tokens]
        return self.bias_table[index.flatten()].view(tokens, tokens, -1).permute(2, 0, 1).unsqueeze(0)


class SwinBlock(nn.Module):
    """Pre-norm block whose attention sees windows, `shifted` ones in every second block."""

    def __init__(self, width: int, heads: int, config: PlainSwinConfig, *, shifted: bool) -> None:
        super().__init__()
        self.window = config.window
        self.shift = tuple(extent // 2 if shifted else 0 for extent in config.window)
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, config.window, config.attention)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, config.mlp_ratio * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, D) -> (B, T, H, W, D)."""
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def attend(self, x: Tensor) -> Tensor:
        """Pad, roll, cut into windows, attend, and all the way back: (B, T, H, W, D) -> (B, T, H, W, D)."""
        size = tuple(x.shape[1:4])
        window, shift = clip(size, self.window, self.shift)
        time, height, width = (-extent % step for extent, step in zip(size, window, strict=True))
        x = F.pad(x, (0, 0, 0, width, 0, height, 0, time))
        padded = tuple(x.shape[1:4])
        if any(shift):
            x = torch.roll(x, [-by for by in shift], (1, 2, 3))
        mask = shift_mask(padded, window, shift).to(x.dtype) if any(shift) else None
        x = merge(self.attn(partition(x, window), mask), window, padded)
        if any(shift):
            x = torch.roll(x, shift, (1, 2, 3))
        return x[:, : size[0], : size[1], : size[2]]


class PatchMerging(nn.Module):
    """Four neighbors side by side, normed and projected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, D) -> (B, T, H / 2, W / 2, 2 D), odd sides completed with zeros."""
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        neighbors = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(neighbors, dim=-1)))


class PlainSwin(nn.Module):
    """Stages of blocks with merging between them, a norm, the mean over the map, and a linear head."""

    def __init__(self, config: PlainSwinConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(config)
        layers = []
        for stage, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
            width = config.width << stage
            layers += [PatchMerging(width // 2)] if stage else []
            layers += [SwinBlock(width, heads, config, shifted=bool(number % 2)) for number in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Normalized pixels (B, 3, T, H, W), T = 1 for pictures -> logits (B, classes)."""
        return self.head(self.norm(self.layers(self.patch_embed(clips))).mean(dim=(1, 2, 3)))


def from_omnivore(state: Mapping[str, Tensor], config: PlainSwinConfig, head: str) -> dict[str, Tensor]:
    """The weights of an Omnivore, those of one of its heads among them, under the names of a PlainSwin."""
    fixed = {
        "tokenizers.rgb.weight": "patch_embed.proj.weight",
        "tokenizers.rgb.bias": "patch_embed.proj.bias",
        "tokenizers.rgb.norm.weight": "patch_embed.norm.weight",
        "tokenizers.rgb.norm.bias": "patch_embed.norm.bias",
        "trunk.norm.weight": "norm.weight",
        "trunk.norm.bias": "norm.bias",
        f"heads.{head}.weight": "head.weight",
        f"heads.{head}.bias": "head.bias",
    }
    names, place = dict(fixed), 0
    for stage, depth in enumerate(config.depths):
        parts = [f"blocks.{number}." for number in range(depth)] + ["merge."] * (stage + 1 < len(config.depths))
        for part in parts:
            prefix = f"trunk.stages.{stage}.{part}"
            names |= {name: f"layers.{place}.{name[len(prefix) :]}" for name in state if name.startswith(prefix)}
            place += 1
    found = {ours: state[theirs] for theirs, ours in names.items()}
    kernel = found["patch_embed.proj.weight"].unflatten(1, (*config.patch, 3)).permute(0, 4, 1, 2, 3)
    return found | {"patch_embed.proj.weight": kernel.contiguous()}
