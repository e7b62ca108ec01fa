"""One rank of the demonstration in this process: its trainer, and batches as large as its share on two ranks."""

from pathlib import Path
from typing import Any

import numpy as np

from data import Batch
from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.identity import read_identity
from launcher.contract.run_dir import RunDir
from vpred_train import runtime
from vpred_train.config.train import TrainConfig
from vpred_train.prepare.data import open_data
from vpred_train.prepare.recipe import load_recipe

RECIPE = Path(__file__).parents[3] / "vpred_train" / "recipes" / "tiny_emoji.yaml"
SHARE = 8
IDENTITY = read_identity({})


def set_up_mindspore() -> None:
    """Import MindSpore as a rank does; before `make_trainer`."""
    runtime.start_single()


def make_trainer(run: RunDir) -> tuple[TrainConfig, Any]:
    """Build what `vpred_train.training.worker` builds."""
    from checkpoints_mgr import CheckpointManager
    from vpred_train.distributed.collectives import SingleProcess
    from vpred_train.models.build import build_networks
    from vpred_train.training.trainer import Trainer

    recipe = load_recipe(RECIPE, [f"global_batch={SHARE}"])
    config = recipe.model_copy(update={"precision": recipe.precision.on(ACCELERATORS["cpu"])})
    source = open_data(config).training
    collective = SingleProcess()
    checkpoints = CheckpointManager(run.checkpoints, collective)
    return config, Trainer(config, build_networks(config), source, collective, checkpoints, run.snapshots)


def make_batch(config: TrainConfig, number: int) -> Batch:
    """The batch of a step, with noise for images."""
    rng = np.random.default_rng(number)
    side = config.data.resolution
    return Batch(
        arrays={"images": rng.uniform(-1, 1, (SHARE, 3, side, side)).astype(np.float32)},
        captions=tuple(f"caption {index}" for index in range(SHARE)),
        epochs=np.full(SHARE, number),
        sample_ids=np.arange(SHARE),
        places=np.arange(SHARE),
        samples_seen=(number + 1) * SHARE,
        wait_s=0.0,
    )
