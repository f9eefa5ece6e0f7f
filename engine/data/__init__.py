"""The way of the data: sample order, files, checks, crops, decoding, batches."""

from omnitrunk.engine.data.batch import Batch
from omnitrunk.engine.data.config import DataConfig, idle_fields
from omnitrunk.engine.data.index import SampleIndex, check_classes, open_index
from omnitrunk.engine.data.loader import Loader, evaluation_batches
from omnitrunk.engine.data.mixture import JointLoader, MixtureConfig, Order, seed_of

__all__ = [
    "Batch",
    "DataConfig",
    "JointLoader",
    "Loader",
    "MixtureConfig",
    "Order",
    "SampleIndex",
    "check_classes",
    "evaluation_batches",
    "idle_fields",
    "open_index",
    "seed_of",
]
