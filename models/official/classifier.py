"""The tensors of fine-tuned models as the releases and timm name them: the encoder's, then fc_norm and head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from omnitrunk.models.classifier_config import ClassifierConfig
from omnitrunk.models.official import audiomae, mae, videomae
from omnitrunk.models.official.layers import linear, norm
from omnitrunk.models.official.parts import Layout

ENCODERS: dict[str, Callable[[Any], Layout]] = {
    "mae": mae.encoder_layout,
    "videomae": videomae.encoder_layout,
    "audiomae": audiomae.encoder_layout,
}


def layout(config: ClassifierConfig) -> Iterator[Any]:
    """All tensors of a fine-tuned model; ValueError for encoders whose releases are fine-tuned in another form."""
    system = config.encoder["system"]
    if system not in ENCODERS:
        raise ValueError(f"no release of a fine-tuned {system} has this form; known: {', '.join(ENCODERS)}")
    yield from (part for part in ENCODERS[system](config.encoder_config) if not part.ours.startswith("norm."))
    yield from norm("fc_norm", "norm", config.encoder_config.width)
    yield from linear("head", "head", config.classes, config.encoder_config.width)
