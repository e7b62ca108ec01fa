"""Train in one process, with your own loss weight.

python custom_loss_weight.py RECIPE RUN_DIR [section.key=value ...]
"""

import sys
from pathlib import Path

import numpy as np

from vpred_train import load_recipe
from vpred_train.arrays import FloatArray
from vpred_train.prepare.data import open_data
from vpred_train.training.hooks.hook import Hook
from vpred_train.training.rank import single_rank


def bell(snr: FloatArray) -> FloatArray:
    """Weights of timesteps with the signal-to-noise ratios `snr` (T,): 1 at SNR 1, falling to both sides of it."""
    log_snr = np.log(np.maximum(snr, 1e-9))  # the last is 0 at zero terminal SNR
    weights: FloatArray = np.exp(-((log_snr / 4) ** 2)).astype(np.float32)
    return weights


if __name__ == "__main__":
    config = load_recipe(Path(sys.argv[1]), sys.argv[3:])
    rank = single_rank(config, Path(sys.argv[2]))  # first: it sets MindSpore up
    from vpred_train.training.run import build_trainer
    from vpred_train.training.trainer import StopSignal

    trainer = build_trainer(rank, open_data(rank.config))
    objective = trainer.step.objective
    objective.weights = bell(objective.schedule.snr)  # of the squared error of what the network predicts
    trainer.resume()
    trainer.run(Hook(), StopSignal())
