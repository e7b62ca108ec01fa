"""Train with your own loss weight: python custom_loss_weight.py RECIPE RUN_DIR [section.key=value ...]"""

import sys
from pathlib import Path

import numpy as np

from checkpoints_mgr import CheckpointManager
from launcher.contract.accelerators import ACCELERATORS
from vpred_train import load_recipe, runtime
from vpred_train.arrays import FloatArray
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.prepare.data import open_data


def bell(snr: FloatArray) -> FloatArray:
    """Weights of timesteps with the signal-to-noise ratios `snr` (T,): 1 at SNR 1, falling to both sides of it."""
    log_snr = np.log(np.maximum(snr, 1e-9))  # the last is 0 at zero terminal SNR
    weights: FloatArray = np.exp(-((log_snr / 4) ** 2)).astype(np.float32)
    return weights


if __name__ == "__main__":
    run, config = Path(sys.argv[2]), load_recipe(Path(sys.argv[1]), sys.argv[3:])
    config = config.model_copy(update={"precision": config.precision.on(ACCELERATORS["cpu"])})
    runtime.start_single()  # first: these import MindSpore
    from vpred_train.engine.engines import make_host
    from vpred_train.engine.inputs import OnlineInputs
    from vpred_train.engine.progress import Progress
    from vpred_train.models.build import build_networks
    from vpred_train.training.trainer import StopSignal, Trainer

    data, networks, alone = open_data(config).training, build_networks(config), SingleProcess()
    inputs = OnlineInputs(config.model, config.data, config.seed, networks)
    engine = make_host(config, networks, alone, ACCELERATORS["cpu"], Progress.fresh(config, data.digest), inputs)
    trainer = Trainer(config, networks, data, alone, CheckpointManager(run / "checkpoints"), run / "snapshots", *engine)
    objective = trainer.step.objective
    objective.weights = bell(objective.schedule.snr)  # of the squared error of what the network predicts
    trainer.resume()
    trainer.run([], StopSignal())
