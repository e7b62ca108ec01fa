"""Train with a hook that writes losses to a CSV file: python custom_hook.py RECIPE RUN_DIR [section.key=value ...]"""

import sys
from pathlib import Path

from checkpoints_mgr import CheckpointManager
from launcher.contract.accelerators import ACCELERATORS
from vpred_train import load_recipe, runtime
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.engine.step_result import StepResult
from vpred_train.prepare.data import open_data
from vpred_train.training.hooks.hook import Hook


class LossTable(Hook):
    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("step,loss,grad_norm\n")

    def on_step(self, result: StepResult) -> None:
        with self.path.open("a") as file:
            print(result.step, result.loss, result.grad_norm, sep=",", file=file)


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
    trainer.resume()
    trainer.run([LossTable(run / "loss.csv")], StopSignal())
