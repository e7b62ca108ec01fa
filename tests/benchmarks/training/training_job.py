"""A recipe's training step on made-up images, without its data, and the memory of the process that takes it."""

from pathlib import Path
from typing import Any

import numpy as np

from data import Batch
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective


def make_step(config: TrainConfig, collective: Collective) -> Any:
    """The trainer's own step, from fresh weights."""
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.engine.state import TrainState
    from vpred_train.engine.step import TrainStep
    from vpred_train.models.networks import Networks

    networks = Networks(config.model, config.seed)
    state = TrainState(config, FlatSpace(networks, config.trainable), collective)
    return TrainStep(config, networks, state, collective)


def make_batch(config: TrainConfig, collective: Collective) -> Batch:
    """This rank's share of a global batch of noise, as the loader would deliver it."""
    share = config.global_batch // collective.world_size
    places = np.arange(collective.rank * share, (collective.rank + 1) * share)
    images = np.random.default_rng(0).uniform(-1, 1, (config.global_batch, 3, *2 * (config.data.resolution,)))
    return Batch(
        arrays={"images": images[places].astype(np.float32)},
        captions=tuple(f"picture {place}" for place in places),
        epochs=np.zeros_like(places),
        sample_ids=places,
        places=places,
        samples_seen=config.global_batch,
        wait_s=0.0,
    )


def resident_bytes(field: str) -> int:
    """`VmRSS` or its peak, `VmHWM`, of this process (proc(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))
