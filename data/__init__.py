"""Captioned images as numpy arrays, in an order that depends on the seed and the clock alone. No MindSpore."""

from data.buckets import Buckets, buckets_of, one_bucket
from data.cache import ABSENT, Cache, CacheWriter, entry_keys
from data.cached import CacheFetcher, CacheSpecs, Entries, find_entries, moments_keys
from data.config import DataConfig
from data.errors import DataError
from data.fetching import ArraySpec, Fetcher, ImageFetcher
from data.joined import Joined, join
from data.keyed_random import batch_generator, sample_generator
from data.loader import Batch, Loader, dropped
from data.order import ORDER_VERSION, Order, make_order
from data.source import Folder, Sample, Source, open_source
from data.split import Subset, hold_out
from data.transforms import TRANSFORM, load_centred, load_image

__all__ = [
    "ABSENT",
    "ORDER_VERSION",
    "TRANSFORM",
    "ArraySpec",
    "Batch",
    "Buckets",
    "Cache",
    "CacheFetcher",
    "CacheSpecs",
    "CacheWriter",
    "DataConfig",
    "DataError",
    "Entries",
    "Fetcher",
    "Folder",
    "ImageFetcher",
    "Joined",
    "Loader",
    "Order",
    "Sample",
    "Source",
    "Subset",
    "batch_generator",
    "buckets_of",
    "dropped",
    "entry_keys",
    "find_entries",
    "hold_out",
    "join",
    "load_centred",
    "load_image",
    "make_order",
    "moments_keys",
    "one_bucket",
    "open_source",
    "sample_generator",
]
