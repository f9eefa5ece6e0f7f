"""Which parameters decay: matrices do; biases, norms, learned tokens and embeddings do not."""

from __future__ import annotations

from torch import nn

from omnitrunk.models.initialize import is_norm


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Groups {params, names, weight_decay} for an optimizer; every trainable parameter is in exactly one of them.

    A faithful model has one group, in which everything decays, as in the release's pre-training.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed = [name for name in named if model.config.faithful or _decays(name)]
    groups = [(weight_decay, decayed), (0.0, [name for name in named if name not in set(decayed)])]
    return [
        {"params": [named[name] for name in names], "names": names, "weight_decay": decay}
        for decay, names in groups
        if names
    ]


def _decays(name: str) -> bool:
    return name.endswith(".weight") and not is_norm(name)
