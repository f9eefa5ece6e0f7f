"""Recorded configurations as ours."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest import mock

from omnitrunk.models import MODALITIES, MultiMAEConfig

FIELDS = {
    "dim": "width",
    "depth": "depth",
    "heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "global_tokens": "global_tokens",
    "patch": "patch_size",
    "classes": "semseg_classes",
    "dim_class_emb": "class_embedding_width",
    "dec_dim": "decoder_width",
    "dec_depth": "decoder_depth",
    "dec_heads": "decoder_heads",
    "num_encoded_tokens": "keep",
    "sample_tasks_uniformly": "sample_tasks_uniformly",
}
OTHERS = ("in_domains", "out_domains", "norm_rgb", "image", "posemb_image_size", "stride", "alphas", "B")


def model_config(recorded: Mapping[str, Any], **changes: Any) -> MultiMAEConfig:
    """The faithful configuration of a recorded pretraining case. Its inputs are taken as they are."""
    inputs = tuple(recorded["in_domains"])
    extra = ["norm_rgb"] if recorded.get("norm_rgb") else []
    outputs = tuple(dict.fromkeys([*recorded["out_domains"], *extra]))
    return MultiMAEConfig(
        faithful=True,
        inputs=inputs,
        outputs=outputs,
        image_size=_pair(recorded["image"]),
        position_size=_pair(recorded["posemb_image_size"]),
        alphas=alphas_by_name(inputs, recorded["alphas"]),
        standardize_depth=False,
        **{ours: recorded[theirs] for theirs, ours in FIELDS.items() if theirs in recorded},
        **changes,
    )


def sampling_config(recorded: Mapping[str, Any]) -> MultiMAEConfig:
    """The faithful configuration of a recorded sampler, on an image large enough for any number of kept tokens."""
    inputs, keep = tuple(recorded["tokens"]), recorded["num_encoded_tokens"]
    side = 16 * (1 + int(keep**0.5))
    return MultiMAEConfig(
        faithful=True,
        inputs=inputs,
        outputs=inputs,
        image_size=side,
        keep=keep,
        alphas=alphas_by_name(inputs, recorded["alphas"]),
        sample_tasks_uniformly=recorded["sample_tasks_uniformly"],
    )


def alphas_by_name(inputs: tuple[str, ...], alphas: float | list[float]) -> dict[str, float] | float:
    """The release takes a list by position."""
    return alphas if isinstance(alphas, (int, float)) else dict(zip(inputs, alphas, strict=True))


def unused_fields(recorded: Mapping[str, Any]) -> list[str]:
    return sorted(recorded.keys() - FIELDS.keys() - set(OTHERS))


def strides(recorded: Mapping[str, Any]) -> AbstractContextManager:
    """The modalities with the strides of a recorded configuration, for as long as the context lasts."""
    changed = {name: replace(MODALITIES[name], stride=stride) for name, stride in recorded["stride"].items()}
    return mock.patch.dict(MODALITIES, changed)


def _pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
