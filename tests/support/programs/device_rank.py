"""One rank of test_ranks.py under msrun: trains recipes on the device engine and saves its states.

    python -m support.programs.device_rank train FOLDER     ten steps of each of RECIPES, saved after steps 2 and 10
    python -m support.programs.device_rank resume FOLDER    goes on from what one rank has saved, with cached graphs

It prints a line of JSON for each step.
"""

import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from checkpoints_mgr import CheckpointManager
from launcher.contract.accelerators import ACCELERATORS
from support.device_engine import batches, device_step, recipe, share
from vpred_train import runtime
from vpred_train.distributed.collectives import Collective, make_collective
from vpred_train.host_copies import copied

KEYS: dict[str, dict[str, Any]] = {
    "adamw-sharded": {"zero_stage": 1},
    "adamw-replicated-accumulated": {"zero_stage": 0, "gradient_accumulation_steps": 2},
    "adam_weight_decay-sharded-accumulated": {"zero_stage": 1, "gradient_accumulation_steps": 2},
    "sgd-replicated": {"zero_stage": 0},
    "sgd-sharded-accumulated": {"zero_stage": 1, "gradient_accumulation_steps": 2},
}
# The text encoder does not learn: the state is a twentieth, and sooner compiled.
UNET: dict[str, Any] = {"trainable": ["unet"], "pretrained": {"path": "x", "networks": ["text_encoder"]}}
RECIPES = {name: recipe(name.split("-")[0], **UNET, **keys) for name, keys in KEYS.items()}
RESUMED = "adamw-sharded"  # its graph is cached
BAD = 3  # this batch is poisoned on the last rank
STEPS, MORE = 10, 2


def main(what: str, folder: Path) -> None:
    logging.basicConfig(level=logging.INFO)
    identity = runtime.identify()
    accelerator = ACCELERATORS["cpu"]
    runtime.start(accelerator, identity, identity.local_rank, None)
    collective = make_collective(accelerator.collective_under(identity.launcher), identity.world_size)
    if what == "train":
        for name in RECIPES:
            step, manager = start(name, collective, folder)
            train(name, step, 0, 2, collective)
            manager.save(2, step.state.to_checkpoint())
            train(name, step, 2, STEPS, collective)
            manager.save(STEPS, step.state.to_checkpoint())
            if name == RESUMED:
                train(name, step, STEPS, STEPS + MORE, collective)
    else:
        step, _ = start(RESUMED, collective, folder)
        restored = CheckpointManager(folder / "one_rank", collective).restore(step.state.to_checkpoint())
        assert restored is not None
        step.state.from_checkpoint(restored.state)
        CheckpointManager(folder / "again", collective).save(STEPS, step.state.to_checkpoint())
        train(RESUMED, step, STEPS, STEPS + MORE, collective)
    collective.close()


def start(name: str, collective: Collective, folder: Path) -> tuple[Any, CheckpointManager]:
    from vpred_train.models.networks import Networks

    config = RECIPES[name]
    graphs = folder / "graphs" / f"rank_{collective.rank}" if name == RESUMED else None
    step = device_step(config, Networks(config.model, config.seed), collective, folder=graphs)
    return step, CheckpointManager(folder / name, collective)


def train(name: str, step: Any, first: int, stop: int, collective: Collective) -> None:
    config = RECIPES[name]
    for number, whole in enumerate(batches(config, stop - first, BAD, first), first):
        before, counted = digest_of(step), copied.to_host_bytes
        copied.to_host_bytes = 0
        result = step(share(whole, collective.rank, collective.world_size))
        line = {
            "recipe": name,
            "rank": collective.rank,
            "step": number,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "finite": result.finite,
            "blamed": result.nonfinite_samples,
            "to_host_bytes": copied.to_host_bytes,
        }
        copied.to_host_bytes += counted
        print(json.dumps(line | {"unchanged": digest_of(step) == before}), flush=True)


def digest_of(step: Any) -> str:
    state = step.state.to_checkpoint()
    digest = hashlib.sha256(step.state.space.read().tobytes())
    for values in (*state.whole.values(), *(shard.values for shard in state.shards.values())):
        digest.update(values.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
