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


def step_of_torch(expected, theirs, ours, *, lr, clip):
    """A step of torch's optimizer on a float64 copy, with the gradients of ours; returns their norm before the clip."""
    for name, parameter in theirs.named_parameters():
        gradient = getattr(ours, name).grad
        parameter.grad = None if gradient is None else gradient.double()
    norm = torch.nn.utils.get_total_norm([p.grad for p in theirs.parameters() if p.grad is not None])
    if clip:
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
    for group in expected.param_groups:
        group["lr"] = lr * group["lr_scale"]
    expected.step()
    return norm.item()
