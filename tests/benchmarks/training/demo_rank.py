"""One rank of the demonstration in this process: its trainer, and batches as large as its share on two ranks."""

from pathlib import Path
from typing import Any

import numpy as np

from data import Batch
from vpred_train.config.train import TrainConfig
from vpred_train.prepare.data import open_data
from vpred_train.prepare.recipe import load_recipe
from vpred_train.training.rank import RankContext, single_rank

RECIPE = Path(__file__).parents[3] / "vpred_train" / "recipes" / "tiny_emoji.yaml"
SHARE = 8


def make_rank(folder: Path) -> RankContext:
    """Import MindSpore, and make this process the only rank of a run in `folder`."""
    return single_rank(load_recipe(RECIPE, [f"global_batch={SHARE}"]), folder)


def make_trainer(rank: RankContext) -> Any:
    """Build what a run builds."""
    from vpred_train.training.run import build_trainer

    return build_trainer(rank, open_data(rank.config))


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
