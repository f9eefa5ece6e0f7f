"""Which parameters decay: matrices do; biases, norms, learned tokens and embeddings do not."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from omnitrunk.models.initialize import is_norm


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_scale: Callable[[str], float] = lambda _name: 1.0
) -> list[dict[str, object]]:
    """Groups {params, names, weight_decay, lr_scale} for an optimizer; every trainable parameter is in one of them.

    The model's configuration decides by name, `config.decays(name)`; most go by `is_matrix`. `lr_scale` is a factor on
    the learning rate, by name.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups: dict[tuple[float, float], list[str]] = {}
    for name in sorted(named, key=lambda name: not model.config.decays(name)):
        decay = weight_decay if model.config.decays(name) else 0.0
        groups.setdefault((decay, lr_scale(name)), []).append(name)
    return [
        {"params": [named[name] for name in names], "names": names, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), names in groups.items()
    ]


def is_matrix(name: str) -> bool:
    """Whether a parameter of that name is the weight of a linear layer, or one that a pathway joins with it."""
    return (name.endswith(".weight") and not is_norm(name)) or ".pathway.auxiliaries." in name
