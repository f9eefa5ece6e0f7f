"""Middle floor: tokenize, mask, encode, decode, score; the systems, described on top of omnitrunk.kernels."""

from omnitrunk.models.audiomae import AudioMAEConfig
from omnitrunk.models.autoencoder import MaskedAutoencoder
from omnitrunk.models.classifier import Classifier
from omnitrunk.models.classifier_config import ClassifierConfig
from omnitrunk.models.mae import MAEConfig
from omnitrunk.models.masking.mask_plan import MaskPlan, make_plan
from omnitrunk.models.masking.token_plan import TokenPlan, make_token_plan
from omnitrunk.models.modality import MODALITIES, Modality, register
from omnitrunk.models.multimae import MultiMAE, MultiMAEConfig
from omnitrunk.models.omnimae import OmniMAE
from omnitrunk.models.omnimae_config import OmniMAEConfig
from omnitrunk.models.omnivore import Omnivore
from omnitrunk.models.omnivore_config import OmnivoreConfig
from omnitrunk.models.omnivore_segmenter import OmnivoreSegmenter
from omnitrunk.models.omnivore_segmenter_config import OmnivoreSegmenterConfig
from omnitrunk.models.part_segmenter import PartSegmenter, PartSegmenterConfig
from omnitrunk.models.point_classifier import PointClassifier, PointClassifierConfig
from omnitrunk.models.pointmae import PointMAEConfig
from omnitrunk.models.systems import SYSTEMS, build_model, find_system
from omnitrunk.models.videomae import VideoMAEConfig

__all__ = [
    "MODALITIES",
    "SYSTEMS",
    "AudioMAEConfig",
    "Classifier",
    "ClassifierConfig",
    "MAEConfig",
    "MaskPlan",
    "MaskedAutoencoder",
    "Modality",
    "MultiMAE",
    "MultiMAEConfig",
    "OmniMAE",
    "OmniMAEConfig",
    "Omnivore",
    "OmnivoreConfig",
    "OmnivoreSegmenter",
    "OmnivoreSegmenterConfig",
    "PartSegmenter",
    "PartSegmenterConfig",
    "PointClassifier",
    "PointClassifierConfig",
    "PointMAEConfig",
    "TokenPlan",
    "VideoMAEConfig",
    "build_model",
    "find_system",
    "make_plan",
    "make_token_plan",
    "register",
]
