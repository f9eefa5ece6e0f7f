"""Middle floor: tokenize, mask, encode, decode, score; the systems, described on top of omnitrunk.kernels."""

from omnitrunk.models.masking import MaskPlan, make_plan
from omnitrunk.models.modality import MODALITIES, Modality, register
from omnitrunk.models.multimae import MultiMAE, MultiMAEConfig

__all__ = ["MODALITIES", "MaskPlan", "Modality", "MultiMAE", "MultiMAEConfig", "make_plan", "register"]
