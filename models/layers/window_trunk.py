"""A trunk of shifted windows: stages of blocks, between which maps are halved (Liu et al. 2021, section 3.1).

With windows of one frame on maps of one frame it is the trunk of Swin, with longer ones that of Video Swin; that of
Omnivore (Girdhar et al. 2022) takes both kinds of maps. B batch; T, H, W tokens of the map, D width of the first stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omnitrunk.models.layers.blocks import LayerNorm
from omnitrunk.models.layers.merging import PatchMerging, merged
from omnitrunk.models.layers.trunk import add_branch
from omnitrunk.models.layers.window_block import EPSILON, Triple, WindowBlock

State = tuple[Tensor, Tensor | None, Tensor | None]
"""Stream, the branch that is still to be added to it, and that one's factor (B,)."""


class Stage(nn.Module):
    """Blocks on maps of one size, every second one with shifted windows; then the merging, if another stage follows."""

    def __init__(self, blocks: Sequence[WindowBlock], merge: PatchMerging | None, *, recompute: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.merge = merge
        self.recompute = recompute

    def forward(self, stream: Tensor, scales: Sequence[Tensor | None]) -> State:
        """A map (B, T, H, W, D) and the factors (B,) of all branches, two for each block -> the state at the end."""
        state = self.mix(stream, scales)
        return state if self.merge is None else (self.merge(add_branch(*state)), None, None)

    def mix(self, stream: Tensor, scales: Sequence[Tensor | None]) -> State:
        """The same without the merging."""
        branch, scale = None, None
        for number, block in enumerate(self.blocks):
            stream, branch = self._run(block, stream, branch, (scale, scales[2 * number]))
            scale = scales[2 * number + 1]
        return stream, branch, scale

    def flops(self, size: Triple) -> int:
        """Matrix arithmetic on one map of T, H, W tokens."""
        blocks = sum(block.flops(size) for block in self.blocks)
        return blocks if self.merge is None else blocks + self.merge.flops(size)

    def _run(
        self, block: WindowBlock, stream: Tensor, branch: Tensor | None, scales: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, stream, branch, scales, use_reentrant=False, preserve_rng_state=False)
        return block(stream, branch, scales)


class WindowTrunk(nn.Module):
    """Stages, then a norm; every stage has half the height and width of the one before, and twice its width."""

    def __init__(
        self,
        *,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        mlp_ratio: float,
        window: Triple,
        faithful: bool = False,
        recompute: bool = False,
    ) -> None:
        """`recompute` keeps what lies between blocks only, and computes the rest again in the backward pass."""
        super().__init__()
        last = len(depths) - 1
        self.stages = nn.ModuleList()
        for number, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            size = width << number
            blocks = [
                WindowBlock(size, count, mlp_ratio, window=window, shifted=bool(place % 2), faithful=faithful)
                for place in range(depth)
            ]
            self.stages.append(Stage(blocks, PatchMerging(size) if number < last else None, recompute=recompute))
        self.norm = LayerNorm(width << last, EPSILON)

    def forward(self, tokens: Tensor, drop_scale: Tensor | None = None) -> Tensor:
        """A map (B, T, H, W, D) -> the normed map of the last stage.

        `drop_scale` (2 * blocks, B) scales every branch of every sample.
        """
        for stream, branch, scale in self._states(tokens, drop_scale):  # noqa: B007  the last counts
            pass
        return self.norm.add(branch, stream, scale)[0]

    def map_of(self, tokens: Tensor, stage: int) -> Tensor:
        """What a stage, counted from 0, hands on, its merging included; of the last one, what the norm gets."""
        for number, (stream, branch, scale) in enumerate(self._states(tokens, None)):
            if number == stage:
                return stream if branch is None else add_branch(stream, branch, scale)
        raise ValueError(f"stage = {stage}: the trunk has the stages 0 to {len(self.stages) - 1}; choose one of them")

    def maps(self, tokens: Tensor, drop_scale: Tensor | None = None) -> list[Tensor]:
        """The maps of all stages before their merging, (B, T, H, W, D) first; only the last one is normed."""
        found, stream = [], tokens
        for stage, scales in zip(self.stages, self._scales(drop_scale), strict=True):
            found.append(add_branch(*stage.mix(stream, scales)))
            stream = found[-1] if stage.merge is None else stage.merge(found[-1])
        return [*found[:-1], self.norm(stream)]

    def flops(self, size: Triple) -> int:
        """Matrix arithmetic of the forward pass on one map of T, H, W tokens."""
        total = 0
        for stage in self.stages:
            total += stage.flops(size)
            size = merged(size)
        return total

    def _states(self, tokens: Tensor, drop_scale: Tensor | None) -> Iterator[State]:
        """The state after each of the stages."""
        stream = tokens
        for stage, scales in zip(self.stages, self._scales(drop_scale), strict=True):
            state = stage(stream, scales)
            yield state
            stream = state[0]

    def _scales(self, drop_scale: Tensor | None) -> Iterator[list[Tensor | None]]:
        """The factors of each stage's branches."""
        counts = [2 * len(stage.blocks) for stage in self.stages]
        scales = iter([None] * sum(counts) if drop_scale is None else drop_scale)
        return ([next(scales) for _ in range(count)] for count in counts)
