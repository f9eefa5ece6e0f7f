"""Initial weights: for each system a table of rules, name by name, as the released code draws them.

Where a rule says Xavier it is the uniform form (Glorot and Bengio 2010). A table is a tuple of (regular expression,
draw); the first expression found in a parameter's name decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

Draw = Callable[[str, dict[str, Tensor], torch.Generator], Tensor]
"""Name, all parameters by name, generator -> the initial value of the named one."""
Rules = tuple[tuple[str, Draw], ...]


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Give every parameter its initial value by `config.initial_values`, in order, from one seeded generator."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.copy_(_rule(name, model.config.initial_values)(name, parameters, generator))
    forgotten = [name for name, parameter in parameters.items() if parameter.isnan().any()]
    assert not forgotten, f"no initial value for {forgotten}"


def is_norm(name: str) -> bool:
    """Whether a parameter belongs to a LayerNorm; the decoder of an output called norm_rgb is none."""
    return "norm" in "".join(name.split(".")[-2:-1])


def _rule(name: str, rules: Rules) -> Draw:
    for expression, draw in rules:
        if re.search(expression, name):
            return draw
    raise AssertionError(f"no rule for the parameter {name}")


def zeros(name: str, parameters: dict[str, Tensor], _generator: torch.Generator) -> Tensor:
    """All 0."""
    return torch.zeros(parameters[name].shape)


def ones(name: str, parameters: dict[str, Tensor], _generator: torch.Generator) -> Tensor:
    """All 1."""
    return torch.ones(parameters[name].shape)


def normal(name: str, parameters: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Normal with standard deviation 0.02; released code that cuts at an absolute 2 never comes near it."""
    return 0.02 * torch.randn(parameters[name].shape, generator=generator)


def cut_normal(name: str, parameters: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Normal with standard deviation 0.02, cut at one standard deviation."""
    within = torch.special.erf(torch.tensor(0.5**0.5))
    draws = within * (2 * torch.rand(parameters[name].shape, generator=generator) - 1)
    return 0.02 * 2**0.5 * torch.special.erfinv(draws)


def xavier(name: str, parameters: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Xavier by the shape of the weight as it is stored."""
    rows, columns = parameters[name].shape
    return _uniform(parameters[name].shape, (6 / (rows + columns)) ** 0.5, generator)


def xavier_each(name: str, parameters: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Xavier, with the matrices that are stacked in one weight counted apart."""
    rows, columns = parameters[name].shape
    return _uniform(parameters[name].shape, (6 / (rows / _stacked(name, parameters) + columns)) ** 0.5, generator)


def by_inputs(name: str, parameters: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """PyTorch's default for weights and biases: uniform within 1 / sqrt(inputs of the layer)."""
    inputs = parameters[f"{name.rpartition('.')[0]}.weight"].shape[1]
    return _uniform(parameters[name].shape, inputs**-0.5, generator)


def _stacked(name: str, parameters: dict[str, Tensor]) -> int:
    """How many matrices of the original stand above each other in a weight."""
    if name == "context.weight":
        return len([other for other in parameters if re.fullmatch(r"decoders\.\w+\.mask_token", other)])
    return {"qkv": 3, "kv": 2}.get(name.split(".")[-2], 1)


def _uniform(shape: torch.Size, bound: float, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=generator) - 1) * bound


NORMS: Rules = ((r"norm[^.]*\.weight$", ones), (r"norm[^.]*\.bias$", zeros))
TOKENIZER_BIAS: Rules = ((r"^tokenizers?\.(\w+\.)?bias$", by_inputs),)

MULTIMAE: Rules = (
    (r"(global_tokens|task_embedding|class_embedding)$", normal),
    (r"(mask_token|balancer)$", zeros),
    *NORMS,
    *TOKENIZER_BIAS,
    (r"\.weight$", xavier_each),
    (r"\.bias$", zeros),
)
"""Bachmann et al. 2022 (docs/faithful.md lists what is unusual about them)."""

MAE: Rules = (
    (r"(class_token|mask_token)$", normal),
    *NORMS,
    *TOKENIZER_BIAS,
    (r"\.weight$", xavier),
    (r"\.bias$", zeros),
)
"""He et al. 2022; the stacked qkv counts as one matrix."""

AUDIOMAE: Rules = ((r"\.temperature$", ones), *MAE)
"""Huang et al. 2022."""

VIDEOMAE: Rules = (
    (r"mask_token$", cut_normal),
    *NORMS,
    (r"^tokenizer\.(weight|bias)$", by_inputs),
    (r"\.weight$", xavier),
    (r"bias$", zeros),
)
"""Tong et al. 2022; the tokenizer, a convolution there, is left at PyTorch's default."""

POINTMAE: Rules = (
    *NORMS,
    (r"^decoder\.(positions\.\w+|out)\.", by_inputs),
    (r"^decoder\.blocks\..*\.weight$", xavier),
    (r"(mask_token|\.weight)$", normal),
    (r"\.bias$", zeros),
)
"""Pang et al. 2022; the decoder's positions and output are left at PyTorch's default."""
