"""Chooses the inputs that a run trains from: images encoded in each step, or a cache."""

from copy import copy
from dataclasses import replace
from pathlib import Path

from data import CacheFetcher, CacheSpecs, Fetcher, ImageFetcher, Source
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.engine.inputs import CachedInputs, ModelInputs, OnlineInputs
from vpred_train.latent_cache.requirements import cache_specs, check_cache, share_entries
from vpred_train.models.networks import Networks


def make_inputs(
    config: TrainConfig,
    networks: Networks,
    source: Source,
    held_out: Source | None,
    collective: Collective,
    recipe: Path,
    shared: Path | None = None,
) -> tuple[Fetcher, ModelInputs]:
    """Make the fetcher of training samples, and the inputs that turn them into latents and text. Called by all ranks.

    shared: file through which rank 0 sends the samples' places in the cache to the other ranks.
    Raises ConfigError and DataError: when `recipe` asks for a cache that lacks something.
    """
    if config.data.cache is None or config.model.vae is None:
        images = ImageFetcher(source, config.data, config.seed)
        return images, OnlineInputs(config.model, config.data, config.seed, networks)
    # The weights' digests take seconds, so only one rank reads the file.
    told = collective.broadcast_object(vars(cache_specs(config)) if collective.rank == 0 else None)
    specs = CacheSpecs(**told)
    if shared is None:
        entries = check_cache(config, specs, source, held_out, recipe)
    else:
        entries = share_entries(config, specs, source, held_out, recipe, collective, shared)
    separate = replace(entries, cache=copy(entries.cache))  # separate file handles: the loader's thread reads too
    fetcher = CacheFetcher(entries, config.data, config.seed)
    return fetcher, CachedInputs(config.model.vae, config.data.resolution, config.seed, separate, specs)
