"""Three small parameters with groups of their own, which get random gradients or none."""

from __future__ import annotations

import torch
from torch import nn

SHAPES = {"early": (3, 4), "late": (5,), "head": (2, 2, 2)}


class Weights(nn.Module):
    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator)))

    def groups(self):
        factors = {"early": (0.3, 0.1), "late": (0.0, 1.0), "head": (0.3, 1.0)}
        return [
            {"params": [getattr(self, name)], "names": [name], "weight_decay": decay, "lr_scale": scale}
            for name, (decay, scale) in factors.items()
        ]

    def give_gradients(self, seed, names=tuple(SHAPES)):
        generator = torch.Generator().manual_seed(seed)
        for name in SHAPES:
            parameter = getattr(self, name)
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient if name in names else None
