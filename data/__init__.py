"""Captioned images as numpy arrays, in an order that depends on the seed and the clock alone. No MindSpore."""

from data.config import DataConfig
from data.errors import DataError
from data.keyed_random import batch_generator, sample_generator
from data.loader import Batch, Loader
from data.order import Order
from data.source import Folder, Sample, Source, open_source
from data.split import hold_out
from data.transforms import load_centred, load_image

__all__ = [
    "Batch",
    "DataConfig",
    "DataError",
    "Folder",
    "Loader",
    "Order",
    "Sample",
    "Source",
    "batch_generator",
    "hold_out",
    "load_centred",
    "load_image",
    "open_source",
    "sample_generator",
]
