"""Captioned images as numpy arrays, in an order that depends on the seed and the clock alone. No MindSpore."""

from data.config import DataConfig
from data.csv_source import Sample, Source, count_small, read_csv_folder
from data.errors import DataError
from data.keyed_random import batch_generator, sample_generator
from data.loader import Batch, Loader
from data.order import Order
from data.split import hold_out
from data.transforms import load_centred, load_image

__all__ = [
    "Batch",
    "DataConfig",
    "DataError",
    "Loader",
    "Order",
    "Sample",
    "Source",
    "batch_generator",
    "count_small",
    "hold_out",
    "load_centred",
    "load_image",
    "read_csv_folder",
    "sample_generator",
]
