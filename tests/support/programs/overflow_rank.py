"""One rank of a job in which some gradients of rank 1 overflow: prints a line of JSON for each step.

Steps 2 and 3 of 8, without sharding and with it (zero_stage 0 and 1); the scale starts at 1024, its window is of 2
updates.
"""

import hashlib
import json
import sys
from typing import Any

import numpy as np

from data import Batch
from launcher.contract.accelerators import ACCELERATORS
from support.small_training import DOCUMENT, MODEL
from vpred_train import runtime
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective, make_collective

OVERFLOWING = (2, 3)
FLAT_UNET = MODEL["unet"] | {"channel_multipliers": [1], "attention_levels": [0]}  # sooner compiled
PRECISION = {"loss_scaling": "dynamic", "init_loss_scale": 1024.0, "loss_scale_window_steps": 2}


def share_of(config: TrainConfig, number: int, collective: Collective) -> Batch:
    rng = np.random.default_rng([number, collective.rank])
    size = config.global_batch // collective.world_size
    places = np.arange(size) + size * collective.rank
    return Batch(
        arrays={"images": rng.uniform(-1, 1, (size, 3, 8, 8)).astype(np.float32)},
        captions=("a", "b", "c", "d")[:size],
        epochs=np.full(size, number),
        sample_ids=places,
        places=places,
        samples_seen=number * config.global_batch,
        wait_s=0.0,
    )


def train(collective: Collective) -> None:
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.engine.state import TrainState
    from vpred_train.engine.step import TrainStep
    from vpred_train.models.networks import Networks

    config = TrainConfig.model_validate(DOCUMENT | {"precision": PRECISION, "model": MODEL | {"unet": FLAT_UNET}})
    networks = Networks(config.model, 0)
    space = FlatSpace(networks)
    start = space.read()
    step: Any = TrainStep(config, networks, TrainState(config, space, collective), collective)
    graph, number = step.loss_and_gradients, 0

    def overflowing(*inputs: Any) -> Any:
        loss, gradients = graph(*inputs)
        if number in OVERFLOWING and collective.rank == 1:
            gradients[0].asnumpy().reshape(-1)[0] = np.inf  # in what rank 0 owns, where the space is sharded
        return loss, gradients

    step.loss_and_gradients = overflowing
    for zero_stage in (0, 1):
        space.write(start)
        step.state = TrainState(config.model_copy(update={"zero_stage": zero_stage}), space, collective)
        for number in range(1, 9):
            result = step(share_of(config, number, collective))
            line = {
                "rank": collective.rank,
                "zero_stage": zero_stage,
                "step": number,
                "samples_seen": step.state.samples_seen,
                "finite": result.finite,
                "overflow": result.overflow,
                "loss_scale": result.loss_scale,
                "weights": hashlib.sha256(step.state.weights).hexdigest(),
            }
            print(json.dumps(line), flush=True)


def main() -> None:
    identity = runtime.identify()
    accelerator = ACCELERATORS["cpu"]
    runtime.start(accelerator, identity, identity.local_rank, None)
    collective = make_collective(accelerator.collective_under(identity.launcher), identity.world_size)
    train(collective)
    collective.close()


if __name__ == "__main__":
    sys.exit(main())
