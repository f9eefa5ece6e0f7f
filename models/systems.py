"""The systems by name: the configuration that a recipe fills in, the model made of it, its released state dicts."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from omnitrunk.models.audiomae import AudioMAEConfig
from omnitrunk.models.autoencoder import MaskedAutoencoder
from omnitrunk.models.classifier import Classifier
from omnitrunk.models.classifier_config import ClassifierConfig
from omnitrunk.models.mae import MAEConfig
from omnitrunk.models.multimae import MultiMAE
from omnitrunk.models.multimae_config import MultiMAEConfig
from omnitrunk.models.official import audiomae, classifier, mae, multimae, omnimae, omnivore, pointmae, videomae
from omnitrunk.models.official.parts import Layout
from omnitrunk.models.omnimae import OmniMAE
from omnitrunk.models.omnimae_config import OmniMAEConfig
from omnitrunk.models.omnivore import Omnivore
from omnitrunk.models.omnivore_config import OmnivoreConfig
from omnitrunk.models.omnivore_segmenter import OmnivoreSegmenter
from omnitrunk.models.omnivore_segmenter_config import OmnivoreSegmenterConfig
from omnitrunk.models.part_segmenter import PartSegmenter, PartSegmenterConfig
from omnitrunk.models.point_classifier import PointClassifier, PointClassifierConfig
from omnitrunk.models.pointmae import PointMAEConfig
from omnitrunk.models.videomae import VideoMAEConfig


def _unreleased(config: Any) -> Layout:
    raise ValueError(f"no release holds an {config.system}: convert the {config.encoder_config.system} it starts from")


@dataclass(frozen=True, kw_only=True)
class System:
    """What there is of a system."""

    config: type[Any]
    """The dataclass of its sizes and choices."""
    model: type[nn.Module]
    """Made as model(config, seed)."""
    layout: Callable[[Any], Layout]
    """The tensors of a released state dict, by configuration."""


SYSTEMS: dict[str, System] = {
    "multimae": System(config=MultiMAEConfig, model=MultiMAE, layout=multimae.layout),
    "mae": System(config=MAEConfig, model=MaskedAutoencoder, layout=mae.layout),
    "videomae": System(config=VideoMAEConfig, model=MaskedAutoencoder, layout=videomae.layout),
    "audiomae": System(config=AudioMAEConfig, model=MaskedAutoencoder, layout=audiomae.layout),
    "pointmae": System(config=PointMAEConfig, model=MaskedAutoencoder, layout=pointmae.layout),
    "classifier": System(config=ClassifierConfig, model=Classifier, layout=classifier.layout),
    "point_classifier": System(config=PointClassifierConfig, model=PointClassifier, layout=pointmae.classifier_layout),
    "part_segmenter": System(config=PartSegmenterConfig, model=PartSegmenter, layout=pointmae.segmenter_layout),
    "omnivore": System(config=OmnivoreConfig, model=Omnivore, layout=omnivore.layout),
    "omnivore_segmenter": System(config=OmnivoreSegmenterConfig, model=OmnivoreSegmenter, layout=_unreleased),
    "omnimae": System(config=OmniMAEConfig, model=OmniMAE, layout=omnimae.layout),
}


def build_model(config: Any, seed: int) -> nn.Module:
    """The model of a system's configuration, its initial weights drawn from `seed`."""
    return find_system(config.system).model(config, seed)


def find_system(name: str) -> System:
    """The system of that name; ValueError, with the nearest name, where there is none."""
    if name not in SYSTEMS:
        nearest = difflib.get_close_matches(name, SYSTEMS, n=1, cutoff=0.0)
        raise ValueError(f"unknown system {name!r}; did you mean {nearest[0]!r}? Known: {', '.join(SYSTEMS)}")
    return SYSTEMS[name]
