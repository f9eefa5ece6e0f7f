"""The way of the data: sample order, files, checks, crops, decoding, batches."""

from omnitrunk.engine.data.batch import Batch
from omnitrunk.engine.data.loader import DataConfig, Loader, evaluation_batches

__all__ = ["Batch", "DataConfig", "Loader", "evaluation_batches"]
