"""What timm's VisionTransformer can hold of our models.

Its names are those of the released MAE, without the decoder, and for classifiers those of its fine-tuned models.
"""

from __future__ import annotations

from typing import Any

from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.classifier_config import ClassifierConfig
from omnitrunk.models.multimae_config import MultiMAEConfig

CHANNELS = {"mae": 3, "audiomae": 1}
"""Channels of the pictures of the systems whose encoder is a ViT as timm has it."""


def arguments(config: AutoencoderConfig | MultiMAEConfig | ClassifierConfig) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer for the encoder of these sizes, or for the whole of a classifier.

    The pictures of an AudioMAE are its spectrograms, time downwards. Raises ValueError for systems that do not fit.
    """
    classifier = isinstance(config, ClassifierConfig)
    encoder = config.encoder_config if classifier else config
    if encoder.system not in CHANNELS:
        raise ValueError(f"timm's ViT has no place for a {encoder.system}; it takes {', '.join(CHANNELS)}")
    rows, columns = encoder.grid
    return {
        "img_size": (rows * encoder.patch_size, columns * encoder.patch_size),
        "patch_size": encoder.patch_size,
        "in_chans": CHANNELS[encoder.system],
        "num_classes": config.classes if classifier else 0,
        "global_pool": "avg" if classifier else "token",
        "embed_dim": encoder.width,
        "depth": encoder.depth,
        "num_heads": encoder.heads,
        "mlp_ratio": encoder.mlp_ratio,
    }
