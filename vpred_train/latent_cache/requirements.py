"""Finds the cache entries that a recipe needs, and checks that they exist before a run begins. Needs no MindSpore."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash
from safetensors import SafetensorError

from data import (
    TRANSFORM,
    Buckets,
    Cache,
    CacheSpecs,
    Entries,
    Size,
    Source,
    Subset,
    Table,
    buckets_of,
    find_entries,
    mapped_entries,
    one_bucket,
    table_of,
    write_entries,
)
from launcher.contract.config import ConfigError
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.prepare.data import PROBED_IMAGES
from vpred_train.weights.formats.stored_tensor import LazyTensors
from vpred_train.weights.layouts.tensor_shapes import TEXT, VAE
from vpred_train.weights.pretrained import open_pretrained

logger = logging.getLogger(__name__)

ENCODER = (f"{VAE}encoder.", f"{VAE}quant_conv.")  # moments do not depend on the decoder


def cache_specs(config: TrainConfig) -> CacheSpecs:
    """Return all that decides the entries of a recipe whose `precision` is resolved.

    The encoders' weights are represented by their digest, so they are read here.
    Raises ConfigError: when the recipe has no autoencoder, or its weights cannot be read.
    """
    tensors = open_pretrained(config)
    model, data, dtype = config.model, config.data, config.precision.dtype
    if model.vae is None:
        raise ConfigError(
            "model.vae: found null, but data.cache holds the moments of an autoencoder; leave out data.cache"
        )
    vae = model.vae.model_dump(mode="json", exclude={"scale"})  # the scale is applied when an entry is read
    return CacheSpecs(
        moments={
            "kind": "moments",
            "transform": TRANSFORM,
            "crop": data.crop,
            "background": data.background,
            "compute_dtype": dtype,
            "vae": vae | {"xxh3": weights_digest(tensors, ENCODER)},
        },
        text={
            "kind": "text",
            "compute_dtype": dtype,
            "text_encoder": model.text_encoder.model_dump(mode="json") | {"xxh3": weights_digest(tensors, (TEXT,))},
        },
    )


def weights_digest(tensors: LazyTensors, prefixes: tuple[str, ...]) -> str:
    """Return the xxh3-128 digest, hexadecimal, of the names and float32 values below `prefixes`.

    It is the same in every layout of weights.
    """
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        if name.startswith(prefixes):
            digest.update(name.encode())
            digest.update(tensors[name].data)
    return digest.hexdigest()


def open_cache(config: TrainConfig, recipe: Path) -> Cache:
    """Open the recipe's cache. Raises ConfigError: when it is empty; DataError: when it cannot be read."""
    cache = Cache(cache_folder(config, recipe))
    if not cache.shards:
        raise ConfigError(f"{cache.folder}: holds no cache; {remedy(config, recipe)}")
    return cache


def cache_folder(config: TrainConfig, recipe: Path) -> Path:
    """Return the recipe's `data.cache`. Raises ConfigError: when it has none."""
    if config.data.cache is None:
        raise ConfigError(f"{recipe}: data.cache is missing; set it to the folder of the cache")
    return config.data.cache


@dataclass(frozen=True)
class RequiredSamples:
    """Describes samples that a run reads from a cache.

    buckets: sizes at which the samples are read
    mirrored: mirror images are read too
    """

    source: Source
    buckets: Buckets
    mirrored: bool


def required_samples(config: TrainConfig, source: Source, held_out: Source | None) -> Iterator[RequiredSamples]:
    """Yield the samples that a run trains on, then those that it reads as squares.

    The squares are the held-out images, and the images by which pretrained weights are probed.
    """
    yield RequiredSamples(source, buckets_of(source, config.data, config.global_batch), config.data.horizontal_flip)
    square = Size(config.data.resolution, config.data.resolution)
    if held_out is not None:
        yield RequiredSamples(held_out, one_bucket(square, len(held_out)), mirrored=False)
    if config.pretrained is not None and "unet" in config.pretrained.networks:
        probed = Subset(source, np.arange(min(PROBED_IMAGES, len(source))))
        yield RequiredSamples(probed, one_bucket(square, len(probed)), mirrored=False)


def check_cache(
    config: TrainConfig, specs: CacheSpecs, source: Source, held_out: Source | None, recipe: Path
) -> Entries:
    """Find the places of the training samples in the cache, and a table of the samples that are read as squares.

    Raises DataError: when one of them has no entry.
    """
    cache, todo = open_cache(config, recipe), remedy(config, recipe)
    training, *squares = [
        (each.source, find_entries(cache, each.source, specs, each.buckets, mirrored=each.mirrored, remedy=todo))
        for each in required_samples(config, source, held_out)
    ]
    size = Size(config.data.resolution, config.data.resolution)
    return replace(training[1], squares=Table.joined([table_of(specs, *each, size) for each in squares]))


def share_entries(
    config: TrainConfig,
    specs: CacheSpecs,
    source: Source,
    held_out: Source | None,
    recipe: Path,
    collective: Collective,
    file: Path,
) -> Entries:
    """Run `check_cache` on rank 0, which writes the result to `file`, and map that file on the others.

    Called by all ranks. A rank that cannot map the file runs `check_cache` itself.
    """
    entries = None
    if collective.rank == 0:
        entries = check_cache(config, specs, source, held_out, recipe)
        try:
            entries = write_entries(entries, file)
        except (OSError, SafetensorError) as error:
            logger.warning("%s: cannot be written (%s); every rank looks for its samples in the cache", file, error)
    seal = collective.broadcast_object(entries.seal if entries else None)
    if entries is None and seal:
        try:
            return mapped_entries(file, seal, cache_folder(config, recipe))
        except RuntimeError as error:
            logger.warning("%s; this rank looks for its samples in the cache itself", error)
    return entries or check_cache(config, specs, source, held_out, recipe)


def remedy(config: TrainConfig, recipe: Path) -> str:
    """Return a remedy: the command that makes the entries of a recipe."""
    return f"make them with vpred-data encode --recipe {recipe} --output {config.data.cache}"
