"""Which cache entries a recipe needs, and whether they are there. No MindSpore: checked before a run begins."""

from pathlib import Path

import xxhash

from data import TRANSFORM, Cache, CacheSpecs, Entries, Source, find_entries
from launcher.contract.config import ConfigError
from vpred_train.config import TrainConfig
from vpred_train.recipe import open_pretrained
from vpred_train.weights.shapes import TEXT, VAE
from vpred_train.weights.stored import LazyTensors

ENCODER = (f"{VAE}encoder.", f"{VAE}quant_conv.")  # moments do not depend on the decoder


def cache_specs(config: TrainConfig) -> CacheSpecs:
    """What decides the entries of a recipe with a resolved `precision`, the encoders' weights by their digest.

    Reads these weights. Raises ConfigError.
    """
    tensors = open_pretrained(config)
    model, data, dtype = config.model, config.data, config.precision.dtype
    if model.vae is None:
        raise ConfigError("model.vae: found null, but data.cache holds what an autoencoder makes; leave out data.cache")
    vae = model.vae.model_dump(mode="json", exclude={"scale"})  # which is applied to what is read
    return CacheSpecs(
        moments={
            "kind": "moments",
            "transform": TRANSFORM,
            "height": data.resolution,
            "width": data.resolution,
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
    """xxh3-128, hexadecimal, of the names and float32 values below `prefixes`: the same in every layout of weights."""
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        if name.startswith(prefixes):
            digest.update(name.encode())
            digest.update(tensors[name].data)
    return digest.hexdigest()


def open_cache(config: TrainConfig, recipe: Path) -> Cache:
    """The recipe's cache. Raises ConfigError when it is empty, and DataError."""
    if config.data.cache is None:
        raise ConfigError(f"{recipe}: has no data.cache; give the folder")
    cache = Cache(config.data.cache)
    if not cache.shards:
        raise ConfigError(f"{config.data.cache}: holds no cache; {remedy(config, recipe)}")
    return cache


def check_cache(
    config: TrainConfig, specs: CacheSpecs, source: Source, held_out: Source | None, recipe: Path
) -> Entries:
    """Where the training samples lie; raises DataError when any of them, or of the held-out ones, has no entry."""
    cache, todo = open_cache(config, recipe), remedy(config, recipe)
    if held_out is not None:
        find_entries(cache, held_out, specs, mirrored=False, remedy=todo)
    return find_entries(cache, source, specs, mirrored=config.data.horizontal_flip, remedy=todo)


def remedy(config: TrainConfig, recipe: Path) -> str:
    """The command that makes what a recipe needs."""
    return f"make them with vpred-data encode --recipe {recipe} --output {config.data.cache}"
