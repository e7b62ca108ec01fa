"""Captioned images as numpy arrays, in an order that depends on the seed and the clock alone. No MindSpore."""

from data.buckets import Buckets, buckets_of, one_bucket
from data.cache import ABSENT, Cache, Table
from data.cached import CacheFetcher, CacheSpecs, find_entries, image_keys, pieces, table_of
from data.config import DataConfig
from data.entries import Entries, mapped_entries, write_entries
from data.errors import DataError
from data.fetching import ArraySpec, Fetcher, ImageFetcher
from data.joined import Joined, join
from data.keyed_random import batch_generator, sample_generator
from data.loader import Batch, Loader, dropped
from data.order import ORDER_VERSION, Order, make_order
from data.shards import KEY, CacheWriter, encoded_keys, entry_keys
from data.source import Folder, Sample, Source, open_source
from data.split import Subset, hold_out, image_count, numbers_in_both
from data.transforms import TRANSFORM, load_centred, load_image

__all__ = [
    "ABSENT",
    "KEY",
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
    "Table",
    "batch_generator",
    "buckets_of",
    "dropped",
    "encoded_keys",
    "entry_keys",
    "find_entries",
    "hold_out",
    "image_count",
    "image_keys",
    "join",
    "load_centred",
    "load_image",
    "make_order",
    "mapped_entries",
    "numbers_in_both",
    "one_bucket",
    "open_source",
    "pieces",
    "sample_generator",
    "table_of",
    "write_entries",
]
