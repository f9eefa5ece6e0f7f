"""The tensors of fine-tuned models as the releases and timm name them: the encoder's, then fc_norm and head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from omnitrunk.models.classifier_config import ClassifierConfig
from omnitrunk.models.official import audiomae, mae, videomae
from omnitrunk.models.official.layers import linear, norm
from omnitrunk.models.official.parts import ClassPosition, Computed, Layout, Part, SequenceTable

ENCODERS: dict[str, Callable[[Any], Layout]] = {
    "mae": mae.encoder_layout,
    "videomae": videomae.encoder_layout,
    "audiomae": audiomae.encoder_layout,
}


def layout(config: ClassifierConfig) -> Iterator[Part | Computed]:
    """All tensors of a fine-tuned model; ValueError for encoders whose releases are fine-tuned in another form."""
    system = config.encoder["system"]
    if system not in ENCODERS:
        raise ValueError(f"no release of a fine-tuned {system} has this form; known: {', '.join(ENCODERS)}")
    for part in ENCODERS[system](config.encoder_config):
        if config.train_positions and isinstance(part, SequenceTable):
            yield from _trained_table(part)
        elif not part.ours.startswith("norm."):
            yield part
    yield from norm("fc_norm", "norm", config.encoder_config.width)
    yield from linear("head", "head", config.classes, config.encoder_config.width)


def _trained_table(table: SequenceTable) -> Iterator[Part]:
    """A table whose first row, the class token's position, is trained too."""
    yield replace(table, class_position=True)
    width = table.shape[-1:]
    yield ClassPosition(
        official=table.official, ours="class_position", shape=table.shape, rows=width, factors=width, order=(0,)
    )
