"""`vpred-data encode` fills a cache with all that training needs of images and captions. Ranks share the work."""

import argparse
import shutil
import time
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data import CacheSpecs, CacheWriter
from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.distributed.session import rank_session
from vpred_train.latent_cache.plan import Work, plan
from vpred_train.latent_cache.requirements import cache_specs
from vpred_train.prepare.data import open_data
from vpred_train.prepare.recipe import load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vpred-data encode`."""
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    parser.add_argument("--recipe", type=Path, required=True, help="YAML file of the training setup")
    parser.add_argument("--data_path", type=Path, help="folder of the images (default: the recipe's data.path)")
    parser.add_argument("--output", type=Path, help="folder to fill (default: the recipe's data.cache)")
    parser.add_argument("--batch-size", type=int, default=4, help="images or captions per batch (default: 4)")
    parser.add_argument("--accelerator", choices=sorted(ACCELERATORS), default="cpu", help="(default: cpu)")


def run(arguments: argparse.Namespace) -> int:
    """Encode as this process's rank. Entries that the cache holds already stay."""
    with rank_session(ACCELERATORS[arguments.accelerator]) as session:
        config = resolve(arguments)
        config = config.model_copy(update={"precision": config.precision.on(session.accelerator)})
        encode(config, arguments.batch_size, session.start())
    return ExitCode.OK


def resolve(arguments: argparse.Namespace) -> TrainConfig:
    """Return the recipe with the command line's paths. Raises ConfigError: for a bad option or recipe."""
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch-size: found {arguments.batch_size} (must be at least 1)")
    paths = {"data.path": arguments.data_path, "data.cache": arguments.output}
    given = [f"{key}={path}" for key, path in paths.items() if path is not None]
    config = load_recipe(arguments.recipe, [*arguments.overrides, *given])
    if config.data.cache is None:
        raise ConfigError("--output is missing: give the folder to fill (the recipe has no data.cache)")
    return config


def encode(config: TrainConfig, batch_size: int, collective: Collective) -> None:
    """Make every entry that the recipe needs and its cache lacks. Called by all ranks.

    Raises ConfigError and DataError: for a bad recipe, weights or data, or a full disk.
    """
    started = time.perf_counter()
    folder, prints = config.data.cache or Path(), collective.rank == 0
    data = open_data(config, collective)
    specs = CacheSpecs(**collective.broadcast_object(vars(cache_specs(config)) if prints else None))
    work = plan(config, specs, data)
    collective.barrier()  # all ranks have looked before any rank writes
    require_space(folder, work, work.nbytes(config), prints)
    mine = work.share(collective.rank, collective.world_size)
    if mine.count:
        with tqdm(total=mine.count, unit="entry", desc="rank 0's share", disable=not prints) as bar:
            write_share(config, folder, specs, mine, batch_size, bar)
    collective.barrier()
    if prints:
        seconds, ranks = time.perf_counter() - started, collective.world_size
        kept = work.wanted - work.count
        print(f"{folder}: {work.count} entries written, {kept} were there; {seconds:.1f} s on {ranks} ranks")


def require_space(folder: Path, work: Work, nbytes: int, prints: bool) -> None:
    """Make the folder, and print what will be written.

    nbytes: size of the entries to write, bytes
    prints: this rank prints
    Raises ConfigError: when the folder cannot be made, or its disk has too little room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); give another --output") from None
    size, room = f"{nbytes / 1e9:.3g} GB", f"{free / 1e9:.3g} GB"
    if nbytes > free:
        raise ConfigError(f"{folder}: needs {size}, but {room} are free; make room or give another --output")
    if prints:
        what = f"{len(work.images)} images and {len(work.captions)} captions to encode ({work.wanted} entries in all)"
        print(f"{folder}: {what}, {size}; {room} are free", flush=True)


def write_share(config: TrainConfig, folder: Path, specs: CacheSpecs, work: Work, batch_size: int, bar: Any) -> None:
    """Make one rank's part, in separate shards."""
    from vpred_train.latent_cache.encoders import Encoders

    encoders = Encoders(config, batch_size)
    by_size = [(size, list(tasks)) for size, tasks in groupby(work.images, attrgetter("size"))]
    made = [(specs.moments_at(size), encoders.moments(tasks)) for size, tasks in by_size]
    for spec, entries in [*made, (specs.text, encoders.features(work.captions))]:
        with CacheWriter(folder, spec) as writer:
            for task, value in entries:
                writer.add(task.key, value)
                bar.update()
