"""The way of the data: sample order, files, checks, crops, decoding, batches."""

from omnitrunk.engine.data.batch import Batch
from omnitrunk.engine.data.config import DataConfig, idle_fields
from omnitrunk.engine.data.index import SampleIndex, check_classes, open_index
from omnitrunk.engine.data.loader import Loader, evaluation_batches

__all__ = [
    "Batch",
    "DataConfig",
    "Loader",
    "SampleIndex",
    "check_classes",
    "evaluation_batches",
    "idle_fields",
    "open_index",
]
