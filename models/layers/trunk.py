"""The trunk: the one stack of transformer blocks that the tokens of all modalities pass through together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from omnitrunk.models.layers.blocks import Block, LayerNorm, QkvBias, scale_of_rows, take_rows


class Trunk(nn.ModuleList):
    """Pre-norm blocks on (B, N, D), without a norm of its own at the end."""

    def __init__(
        self, *, width: int, depth: int, heads: int, mlp_ratio: float, bias: QkvBias = "qkv", eps: float = 1e-6
    ) -> None:
        super().__init__(Block(width, heads, mlp_ratio, bias=bias, eps=eps) for _ in range(depth))

    def forward(
        self,
        tokens: Tensor,
        drop_scale: Tensor | None = None,
        *,
        position: Tensor | None = None,
        rows: Tensor | None = None,
        norm: LayerNorm | None = None,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), or (Q, D) for `rows` (Q,) of the flat (B * N), which alone the last block completes.

        `drop_scale` (2 * depth, B) scales every branch of every sample. `position` (B, N, D) joins the stream before
        every block (Point-MAE). A `norm` that follows is computed together with the last addition.
        """
        for stream, branch, scale in self._states(tokens, drop_scale, position, rows):  # noqa: B007  the last counts
            pass
        if branch is None:
            stream = take_rows(stream, rows)
            return stream if norm is None else norm(stream)
        scale = scale_of_rows(scale, rows, tokens.shape[1])
        return add_branch(stream, branch, scale) if norm is None else norm.add(branch, stream, scale)[0]

    def taps(
        self,
        tokens: Tensor,
        drop_scale: Tensor | None = None,
        *,
        position: Tensor | None = None,
        after: Sequence[int],
        norm: LayerNorm,
    ) -> list[Tensor]:
        """What a `norm` makes of the stream after some of the blocks, (B, N, D) each; `after` counts blocks from 1."""
        states = enumerate(self._states(tokens, drop_scale, position))
        return [norm.add(branch, stream, scale)[0] for done, (stream, branch, scale) in states if done in after]

    def flops(self, batch: int, tokens: int, scored: int) -> int:
        """Matrix arithmetic of the forward pass on B * N rows, of which the last block completes `scored`."""
        whole = batch * tokens
        rows = [whole] * (len(self) - 1) + [scored] * min(len(self), 1)
        return sum(block.flops(batch, tokens, count) for block, count in zip(self, rows, strict=True))

    def _states(
        self, tokens: Tensor, drop_scale: Tensor | None, position: Tensor | None, rows: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Stream, the branch to be added to it and that one's factor (B,): before any block, then after each."""
        scales = [None] * (2 * len(self)) if drop_scale is None else list(drop_scale)
        stream, branch, scale = tokens, None, None
        yield stream, branch, scale
        for number, block in enumerate(self):
            stream = stream if position is None else stream + position
            wanted = rows if number == len(self) - 1 else None
            stream, branch = block(stream, branch, drop_scales=(scale, scales[2 * number]), rows=wanted)
            scale = scales[2 * number + 1]
            yield stream, branch, scale


def add_branch(stream: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """Stream plus scaled branch, both (B, ..., D), scale (B,)."""
    if scale is None:
        return stream + branch
    return stream + branch * scale.view(-1, *[1] * (branch.dim() - 1)).to(branch.dtype)
