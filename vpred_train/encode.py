"""`vpred-data encode`: fill a cache with what training needs of images and captions. Under mpirun the ranks share it."""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data import (
    ABSENT,
    Cache,
    CacheSpecs,
    CacheWriter,
    DataConfig,
    Sample,
    entry_keys,
    image_digests,
    load_centred,
    moments_keys,
)
from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from vpred_train import runtime
from vpred_train.cached_data import cache_specs
from vpred_train.collectives import TIMEOUT_S, Collective, make_collective
from vpred_train.config import ModelConfig, TrainConfig
from vpred_train.diffusion.schedule import FloatArray
from vpred_train.errors import USER_ERRORS
from vpred_train.recipe import load_recipe, open_data

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Task:
    """One entry to make under `key`: of a caption, or of an image, `flipped` or not."""

    key: np.void
    text: str = ""
    sample: Sample | None = None
    flipped: bool = False


@dataclass(frozen=True)
class Work:
    """What the cache lacks, of `wanted` entries in all."""

    images: list[Task]
    captions: list[Task]
    wanted: int

    def share(self, rank: int, world_size: int) -> "Work":
        """One rank's part."""
        return Work(self.images[rank::world_size], self.captions[rank::world_size], self.wanted)

    def nbytes(self, config: TrainConfig) -> int:
        """What the entries take on disk."""
        model, vae = config.model, config.model.vae
        latent = (config.data.resolution // model.pixels_per_latent) ** 2
        moments = 2 * (vae.latent_channels if vae else 0) * latent
        features = model.text_encoder.context_length * model.text_encoder.width
        return FLOAT32_BYTES * (len(self.images) * moments + len(self.captions) * features)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vpred-data encode`."""
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the recipe")
    parser.add_argument("--recipe", type=Path, required=True, help="YAML file of the training setup")
    parser.add_argument("--data_path", type=Path, help="folder of the images (default: the recipe's data.path)")
    parser.add_argument("--output", type=Path, help="folder to fill (default: the recipe's data.cache)")
    parser.add_argument("--batch-size", type=int, default=4, help="images, or captions, encoded at once (default 4)")
    parser.add_argument("--accelerator", choices=sorted(ACCELERATORS), default="cpu", help="(default: cpu)")


def run(arguments: argparse.Namespace) -> int:
    """Encode as the rank that this process is."""
    identity = runtime.identify()
    accelerator = ACCELERATORS[arguments.accelerator]
    try:
        config = resolve(arguments)
        config = config.model_copy(update={"precision": config.precision.on(accelerator)})
        runtime.start(accelerator, identity, identity.local_rank, None)
        collective = make_collective(accelerator.collective_under(identity.launcher), identity.world_size, TIMEOUT_S)
    except USER_ERRORS as error:  # every rank finds the same
        if identity.rank == 0:
            print(error, file=sys.stderr)
        return ExitCode.BAD_CONFIG
    try:
        encode(config, arguments.batch_size, collective)
        collective.close()
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        collective.abort(ExitCode.BAD_CONFIG)
    except Exception:
        sys.excepthook(*sys.exc_info())
        collective.abort(ExitCode.FAILED)
    return ExitCode.OK


def resolve(arguments: argparse.Namespace) -> TrainConfig:
    """The recipe with the command line's paths. Raises ConfigError."""
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch-size: found {arguments.batch_size} (must be at least 1)")
    paths = {"data.path": arguments.data_path, "data.cache": arguments.output}
    overrides = [f"{key}={path}" for key, path in paths.items() if path is not None]
    config = load_recipe(arguments.recipe, [*arguments.overrides, *overrides])
    if config.data.cache is None:
        raise ConfigError("--output is missing: give the folder to fill (the recipe has no data.cache)")
    return config


def encode(config: TrainConfig, batch_size: int, collective: Collective) -> None:
    """Make every entry of the recipe that its cache lacks. Called by all ranks. Raises ConfigError and DataError."""
    started = time.perf_counter()
    folder: Path = config.data.cache or Path()
    source, held_out = open_data(config)
    specs = CacheSpecs(**collective.broadcast_object(vars(cache_specs(config)) if collective.rank == 0 else None))
    work = plan(config, specs, source.samples, held_out.samples if held_out else ())
    nbytes = work.nbytes(config)
    folder.mkdir(parents=True, exist_ok=True)
    collective.barrier()  # all have looked before anyone writes
    free = shutil.disk_usage(folder).free
    tell = print if collective.rank == 0 else _silent
    todo = f"{len(work.images)} images and {len(work.captions)} captions of {work.wanted} entries"
    tell(f"{folder}: to encode {todo}, {nbytes / 1e9:.2f} GB; {free / 1e9:.1f} GB are free", flush=True)
    if nbytes > free:
        raise ConfigError(f"{folder}: needs {nbytes / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free; give another --output")
    mine = work.share(collective.rank, collective.world_size)
    if mine.images or mine.captions:
        with tqdm(total=len(mine.images) + len(mine.captions), unit="entry", disable=collective.rank != 0) as bar:
            encode_share(config, specs, mine, batch_size, bar.update)
    collective.barrier()
    count, seconds = len(work.images) + len(work.captions), time.perf_counter() - started
    kept = work.wanted - count
    tell(f"{folder}: {count} entries written, {kept} were there; {seconds:.1f} s on {collective.world_size} ranks")


def _silent(*_: Any, **__: Any) -> None:
    """Instead of `print`, where another rank tells."""


def plan(
    config: TrainConfig, specs: CacheSpecs, training: Sequence[Sample], held_out: Sequence[Sample]
) -> Work:
    """What is not yet in the cache; equal images and equal captions count once."""
    cache = Cache(config.data.cache or Path())
    samples = [*training, *held_out]
    images: dict[bytes, Task] = {}
    variants = (False, True) if config.data.horizontal_flip else (False,)
    for flipped in variants:
        each = training if flipped else samples
        keys = moments_keys(specs.moments, image_digests(each), flipped)
        images |= {key.tobytes(): Task(key, "", sample, flipped) for key, sample in zip(keys, each, strict=True)}
    texts = ["", *dict.fromkeys(sample.text for sample in samples)]
    captions = {key.tobytes(): Task(key, text) for key, text in zip(entry_keys(specs.text, texts), texts, strict=True)}
    lacking = [_lacking(cache, [*tasks.values()]) for tasks in (images, captions)]
    return Work(*lacking, wanted=len(images) + len(captions))


def _lacking(cache: Cache, tasks: list[Task]) -> list[Task]:
    rows = cache.find(np.array([task.key for task in tasks]))
    return [task for task, row in zip(tasks, rows, strict=True) if row == ABSENT]


def encode_share(
    config: TrainConfig, specs: CacheSpecs, work: Work, batch_size: int, done: Callable[[int], Any]
) -> None:
    """Make one rank's part; `done` is told how many entries each batch had."""
    from vpred_train.models.latents import LatentSpace
    from vpred_train.models.tokenizer import Tokenizer
    from vpred_train.pretrained import networks_of

    networks = networks_of(config, ("text_encoder", "vae"))
    folder, text = config.data.cache or Path(), config.model.text_encoder
    space = LatentSpace(networks.vae, config.model.vae)
    tokenizer = Tokenizer(text.context_length, text.padding)

    def moments(tasks: Sequence[Task]) -> FloatArray:
        return np.concatenate(space.posterior(load(tasks, config.data)), axis=1)

    def features(tasks: Sequence[Task]) -> FloatArray:
        return text_features(networks, tokenizer([task.text for task in tasks]))

    for spec, tasks, encoded in ((specs.moments, work.images, moments), (specs.text, work.captions, features)):
        with CacheWriter(folder, spec) as writer:
            for batch in batches(tasks, batch_size):
                for task, value in zip(batch, encoded(filled(batch, batch_size)), strict=False):
                    writer.add(task.key, value)
                done(len(batch))
