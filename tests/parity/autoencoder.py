"""What the recordings of all masked autoencoders have in common: our model with their weights, and its gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from omnitrunk.models import Classifier, ClassifierConfig, MaskedAutoencoder, TokenPlan, build_model
from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.official.state_dicts import from_official, to_official
from tests.parity.folder import Recorded
from tests.parity.report import Report

Config = TypeVar("Config", bound=AutoencoderConfig)


def cases(files: Iterable[Recorded], marks: Mapping[str, str]) -> dict[str, dict[str, Recorded]]:
    """Files <prefix>_<kind> by prefix and kind; `marks` names a key that a file of each kind must hold."""
    groups: dict[str, dict[str, Recorded]] = defaultdict(dict)
    for file in files:
        prefix, _, kind = file.name.rpartition("_")
        if kind in marks and marks[kind] in file.content:
            groups[prefix][kind] = file
    return groups


def check_complete(prefix: str, group: Mapping[str, Recorded]) -> None:
    if lacking := [kind for kind in ("weights", "io") if kind not in group]:
        raise ValueError(f"the case {prefix} lacks {prefix}_{lacking[0]}.safetensors")


def loaded(config: AutoencoderConfig, weights: Mapping[str, Tensor], dtype: torch.dtype) -> MaskedAutoencoder:
    """Our model with recorded weights."""
    model = build_model(config, 0).to(dtype)
    model.load_state_dict(from_official({key: value.to(dtype) for key, value in weights.items()}, config))
    return model


def fine_tuned(
    config: AutoencoderConfig,
    encoder: Mapping[str, Tensor],
    recorded: Mapping[str, Tensor],
    dtype: torch.dtype,
    **options: float,
) -> Classifier:
    """Our classifier on an encoder's configuration, with recorded weights of the encoder, of fc_norm and of head."""
    described = {item.name: getattr(config, item.name) for item in fields(config)}
    classifier = ClassifierConfig(
        faithful=config.faithful, encoder=described, classes=len(recorded["head.bias"]), **options
    )
    weights = encoder | {key: recorded[key] for key in recorded if key.startswith(("fc_norm.", "head."))}
    model = Classifier(classifier).to(dtype)
    model.load_state_dict(from_official({key: value.to(dtype) for key, value in weights.items()}, classifier))
    return model


def compare_gradient_norms(
    case: str, model: Classifier, loss: Tensor, recorded: Mapping[str, Tensor], report: Report, tolerance: float
) -> None:
    """The norms of the gradients of `loss` that a recording has under gradnorm.<name>."""
    loss.backward()
    ours = to_official({**model.state_dict(), **{name: p.grad for name, p in model.named_parameters()}}, model.config)
    for key, expected in sorted(recorded.items()):
        kind, _, name = key.partition(".")
        if kind == "gradnorm":
            report.close_to_largest(case, key, ours[name].double().norm(), expected, tolerance)


def gradients(model: MaskedAutoencoder, tensors: Mapping[str, Tensor], plan: TokenPlan) -> dict[str, Tensor]:
    """The gradients of the loss by the release's names and shapes."""
    model.zero_grad()
    model(tensors, plan)["loss"].backward()
    named = {name: value.grad for name, value in model.named_parameters()}
    return to_official({**model.state_dict(), **named}, model.config)


def with_heads(
    config: Config,
    sought: Mapping[str, tuple[int, str]],
    recorded: Mapping[str, Tensor],
    compute: Callable[[Config], Mapping[str, Tensor]],
) -> Config:
    """The configuration with the numbers of heads, which weights do not tell, that come closest to a recording.

    `sought`: field -> the width that heads divide, and the recorded key that shows it, in the order of the model;
    `compute` gives a configuration's tensors under the recorded keys.
    """
    for field, (width, key) in sought.items():
        errors = {}
        for heads in (count for count in range(1, width + 1) if width % count == 0):
            with torch.no_grad():
                found = compute(replace(config, **{field: heads}))[key]
            errors[heads] = (found - recorded[key]).abs().max().item()
        config = replace(config, **{field: min(errors, key=errors.get)})
    return config
