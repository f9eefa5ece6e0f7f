"""Initial weights, as the released MultiMAE draws them (docs/faithful.md lists what is unusual about them).

Linear weights are Xavier-uniform (Glorot and Bengio 2010), with the matrices that are stacked in one weight counted
apart; learned tokens and embeddings are normal with a standard deviation of 0.02; mask tokens are 0.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

EMBEDDINGS = ("global_tokens", "task_embedding", "class_embedding")
ZEROS = ("mask_token", "balancer")


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Give every parameter of a MultiMAE its initial value, in the order of its names, from one seeded generator."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.copy_(_initial_value(name, parameters, generator))
    forgotten = [name for name, parameter in parameters.items() if parameter.isnan().any()]
    assert not forgotten, f"no initial value for {forgotten}"


def _initial_value(name: str, parameters: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    shape, last = parameters[name].shape, name.rpartition(".")[2]
    if last in EMBEDDINGS:
        # The release cuts at an absolute 2, a hundred standard deviations: no draw ever comes near.
        return 0.02 * torch.randn(shape, generator=generator)
    if last in ZEROS:
        return torch.zeros(shape)
    if is_norm(name):
        return torch.full(shape, 1.0 if last == "weight" else 0.0)
    if last == "weight":
        bound = (6 / (shape[0] / _stacked(name, parameters) + shape[1])) ** 0.5
        return _uniform(shape, bound, generator)
    assert last == "bias", f"no rule for the parameter {name}"
    if name.startswith("tokenizers."):
        inputs = parameters[name.removesuffix("bias") + "weight"].shape[1]
        return _uniform(shape, inputs**-0.5, generator)
    return torch.zeros(shape)


def is_norm(name: str) -> bool:
    """Whether a parameter belongs to a LayerNorm; the decoder of an output called norm_rgb is none."""
    return "norm" in "".join(name.split(".")[-2:-1])


def _stacked(name: str, parameters: dict[str, Tensor]) -> int:
    """How many matrices of the original stand above each other in a weight."""
    if name == "context.weight":
        return len([other for other in parameters if re.fullmatch(r"decoders\.\w+\.mask_token", other)])
    return {"qkv": 3, "kv": 2}.get(name.split(".")[-2], 1)


def _uniform(shape: torch.Size, bound: float, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=generator) - 1) * bound
