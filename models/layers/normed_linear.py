"""A linear layer, batch normalization and a nonlinearity: what the heads for point clouds are made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from omnitrunk.models.layers.batch_norm import BatchNorm
from omnitrunk.models.layers.blocks import Linear


class NormedLinear(nn.Module):
    """Statistics are those of all rows of the batch; see models.layers.batch_norm."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = Linear(inputs, outputs, bias=bias)
        self.norm = BatchNorm(outputs)
        self._act = act

    def forward(self, x: Tensor) -> Tensor:
        """Rows (B, N, inputs) -> (B, N, outputs)."""
        return self._act(self.norm(self.linear(x)))
