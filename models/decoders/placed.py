"""What decoders share that have every token of a sample at its place, and predict whichever are asked for.

Shapes: B batch, N tokens of a sample, V visible, D width of the trunk, P values of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from omnitrunk.models.masking.token_plan import TokenPlan, all_tokens


class PlacedDecoder(nn.Module):
    """Called as decoder(encoded, sample, plan, patches), it gives predictions (B * Q, P) of `patches` (B, Q)."""

    def everywhere(self, encoded: Tensor, sample: Mapping[str, Tensor], plan: TokenPlan) -> Tensor:
        """Encoded (B, V, D), after a class token where there is one -> predictions (B, N, P) at all positions."""
        patches = all_tokens(len(encoded), places(plan), encoded.device)
        return self(encoded, sample, plan, patches).unflatten(0, patches.shape)


def places(plan: TokenPlan) -> int:
    """N, the tokens of a sample, visible and masked."""
    return plan.keep.shape[1] + plan.masked.shape[1]
