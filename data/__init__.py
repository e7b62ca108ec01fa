"""Loads captioned images as numpy arrays, without MindSpore. The order depends on the seed and the clock alone."""

from data.cache.cache import ABSENT, Cache, Table
from data.cache.cache_fetcher import CacheFetcher, CacheSpecs, find_entries, image_keys, pieces, table_of
from data.cache.entries import Entries, mapped_entries, write_entries
from data.cache.shards import KEY, CacheWriter, encoded_keys, entry_keys
from data.config import DataConfig
from data.errors import DataError
from data.images.size import Size
from data.images.transforms import TRANSFORM, load_image
from data.keyed_random import batch_generator, sample_generator
from data.loading.fetcher import ArraySpec, Fetcher, ImageFetcher, load_centred
from data.loading.loader import Batch, Loader, dropped
from data.order.buckets import Buckets, buckets_of, one_bucket
from data.order.order import ORDER_VERSION, Order, make_order
from data.sources.held_out import Subset, hold_out, image_count, numbers_in_both
from data.sources.mixture import MixtureSource, join
from data.sources.source import Folder, Sample, Source, open_source

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
    "Loader",
    "MixtureSource",
    "Order",
    "Sample",
    "Size",
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
