"""Trains a narrow model of the recipe for a few steps on one batch of noise, by the trainer's own engine."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import xxhash

from data import Batch
from launcher.contract.doctor_record import DoctorRecord
from vpred_train.config.model import ModelConfig
from vpred_train.config.optimizer import ScheduleConfig
from vpred_train.config.train import TrainConfig
from vpred_train.doctor.check import Item, Measured, left_out
from vpred_train.doctor.station import Station
from vpred_train.engine.engines import ENGINES
from vpred_train.engine.inputs import OnlineInputs
from vpred_train.engine.kernel_agreement import agree_on_updates
from vpred_train.engine.progress import Progress
from vpred_train.models.build import build_networks

STEPS = 4
SAMPLES_PER_RANK = 2  # of a micro-batch
LATENT_SIDE = 8
LEVELS = 2
WIDTH = 16
LEARNING_RATE = {"adamw": 1e-3, "adam_weight_decay": 1e-3, "sgd": 1e-2}
LOSS_SCALE = 256.0  # large enough to matter, and far from an overflow
ALL_RANKS = f"{STEPS} steps on one batch"
REMEDY = "look at the findings above; then compare the ranks' versions, and try one rank alone"
CACHE_REMEDY = "remove RUN/graphs before a restart, and report this finding; a stale graph trains wrongly and silently"


def narrow(config: TrainConfig, ranks: int) -> TrainConfig:
    """Return the recipe with a small model on small images. Optimiser, precision, ZeRO and accumulation stay."""
    model = narrow_model(config.model)
    global_batch = SAMPLES_PER_RANK * ranks * config.gradient_accumulation_steps
    scale = {"init_loss_scale": LOSS_SCALE, "min_loss_scale": min(config.precision.min_loss_scale, LOSS_SCALE)}
    return config.model_copy(
        update={
            "model": model,
            "global_batch": global_batch,
            "total_samples": global_batch << 10,
            "pretrained": None,
            "lora": config.lora and config.lora.model_copy(update={"rank": min(config.lora.rank, WIDTH // 2)}),
            "data": config.data.model_copy(
                update={"resolution": LATENT_SIDE * model.pixels_per_latent, "buckets": None, "cache": None}
            ),
            "optimizer": config.optimizer.model_copy(
                update={"learning_rate": LEARNING_RATE[config.optimizer.name], "reference_batch": None}
            ),
            "schedule": ScheduleConfig(name="constant"),
            "precision": config.precision.model_copy(update=scale),
        }
    )


def narrow_model(model: ModelConfig) -> ModelConfig:
    """Return the model with at most LEVELS levels, few channels and one layer of each kind."""
    unet = model.unet.model_copy(
        update={
            "model_channels": WIDTH,
            "channel_multipliers": model.unet.channel_multipliers[:LEVELS],
            "res_blocks": 1,
            "attention_levels": tuple(level for level in model.unet.attention_levels if level < LEVELS),
            "head_channels": WIDTH // 2,
            "context_channels": 2 * WIDTH,
            "norm_groups": WIDTH // 2,
        }
    )
    text_encoder = model.text_encoder.model_copy(update={"width": 2 * WIDTH, "heads": 2, "layers": 1})
    vae = model.vae and model.vae.model_copy(
        update={
            "channels": WIDTH,
            "channel_multipliers": model.vae.channel_multipliers[:LEVELS],
            "res_blocks": 1,
            "norm_groups": WIDTH // 2,
        }
    )
    return model.model_copy(update={"unet": unet, "text_encoder": text_encoder, "vae": vae})


def noise_batch(config: TrainConfig, rank: int, ranks: int, number: int) -> Batch:
    """Make a rank's share of global batch `number`, always of the same images of noise."""
    size = config.global_batch // ranks
    places = np.arange(rank * size, (rank + 1) * size)
    side = config.data.resolution
    images = np.random.default_rng([config.seed, rank]).uniform(-1, 1, (size, 3, side, side)).astype(np.float32)
    return Batch(
        arrays={"images": images},
        captions=tuple(f"picture {place}" for place in places),
        epochs=np.zeros(size, np.int64),
        sample_ids=places,
        places=places,
        samples_seen=(number + 1) * config.global_batch,
        wait_s=0.0,
    )


def items(station: Station) -> Sequence[Item]:
    """List the steps, whose graph is kept for `restart_items`."""
    return [Item(ALL_RANKS, partial(train, station), REMEDY)]


def restart_items(station: Station) -> Sequence[Item]:
    """List the same steps in a new process, with the graph of the one before."""
    return [Item("graph from the cache", partial(train_again, station), CACHE_REMEDY)]


def train(station: Station) -> Measured:
    """Train a few steps; the loss must fall, and all ranks must hold the same weights."""
    losses, seconds, digest = steps(station)
    falls = bool(np.isfinite(losses).all()) and losses[-1] < losses[0]
    return Measured(
        f"loss {losses[0]:.5f} to {losses[-1]:.5f}, first step {seconds[0]:.1f} s, then {min(seconds[1:]):.2f} s",
        "ok" if falls else "failed",
        "the loss falls, equal weights on all ranks",
        same=f"weights {digest}",
    )


def train_again(station: Station) -> Measured:
    """Train the same steps with the cached graph; the weights must be the same bits."""
    digest_before = _weights_of(station.before)
    if not digest_before:
        return left_out("the first start has no weights to compare with")
    folder = station.run.graphs(station.identity.rank)
    if not folder.is_dir() or not any(folder.iterdir()):
        return left_out("the engine keeps no graph here")
    entries = _entries(folder)
    _, seconds, digest = steps(station)
    if _entries(folder) != entries:
        return Measured("the graph was compiled again", "failed", "the cached graph fits")
    alike = f"weights {digest}" == digest_before
    return Measured(
        f"weights {digest}, {'as' if alike else f'not the {digest_before} of'} the compiled graph; "
        f"first step {seconds[0]:.1f} s",
        "ok" if alike else "failed",
        "the same bits",
    )


def _entries(folder: Path) -> set[tuple[str, int]]:
    """Identify the cached graphs. One that is written again is another folder."""
    return {(entry.name, entry.stat().st_ino) for entry in folder.iterdir()}


def _weights_of(record: DoctorRecord | None) -> str:
    found = [each.same for each in record.results if each.subject == ALL_RANKS] if record else []
    return found[0] if found else ""


def steps(station: Station) -> tuple[list[float], list[float], str]:
    """Train. Returns the loss and the seconds of each step, and a digest of the weights at the end."""
    ranks, rank = station.identity.world_size, station.identity.rank
    config = narrow(station.config, ranks)
    agree_on_updates(station.collective, station.identity.hostname)
    networks = build_networks(config)
    inputs = OnlineInputs(config.model, config.data, config.seed, networks)
    keeping = replace(station.accelerator, cached_graphs=True)  # also where a run does not trust cached graphs yet
    state, step = ENGINES[keeping.engine](
        config, networks, station.collective, keeping, Progress.fresh(config), inputs, station.run.graphs(rank)
    )
    losses, seconds = [], []
    for number in range(STEPS):
        started_s = time.perf_counter()
        losses.append(step(noise_batch(config, rank, ranks, number)).loss)
        seconds.append(time.perf_counter() - started_s)
    return losses, seconds, xxhash.xxh3_64_hexdigest(state.full(None).tobytes())
