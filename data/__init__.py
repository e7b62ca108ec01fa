"""Captioned images as numpy arrays, in an order that depends on the seed and the clock alone. No MindSpore."""

from data.config import DataConfig
from data.errors import DataError
from data.fetching import ArraySpec, Fetcher, ImageFetcher
from data.keyed_random import batch_generator, sample_generator
from data.loader import Batch, Loader, dropped
from data.order import ORDER_VERSION, Order, make_order
from data.source import Folder, Sample, Source, open_source
from data.split import hold_out
from data.transforms import load_centred, load_image

__all__ = [
    "ORDER_VERSION",
    "ArraySpec",
    "Batch",
    "DataConfig",
    "DataError",
    "Fetcher",
    "Folder",
    "ImageFetcher",
    "Loader",
    "Order",
    "Sample",
    "Source",
    "batch_generator",
    "dropped",
    "hold_out",
    "load_centred",
    "load_image",
    "make_order",
    "open_source",
    "sample_generator",
]
