"""Train in one process, with a hook that writes losses to a CSV file.

python custom_hook.py RECIPE RUN_DIR [section.key=value ...]
"""

import sys
from pathlib import Path

from vpred_train import load_recipe
from vpred_train.engine.step_result import StepResult
from vpred_train.prepare.data import open_data
from vpred_train.training.hooks.hook import Hook
from vpred_train.training.rank import single_rank


class LossTable(Hook):
    """One row for each step. The other events of `Hook` do nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("step,loss,grad_norm\n")

    def on_step(self, result: StepResult) -> None:
        with self.path.open("a") as file:
            print(result.step, result.loss, result.grad_norm, sep=",", file=file)


if __name__ == "__main__":
    config = load_recipe(Path(sys.argv[1]), sys.argv[3:])
    rank = single_rank(config, Path(sys.argv[2]))  # first: it sets MindSpore up
    from vpred_train.training.run import build_trainer
    from vpred_train.training.trainer import StopSignal

    trainer = build_trainer(rank, open_data(rank.config))
    trainer.resume()
    trainer.run(LossTable(rank.run.root / "loss.csv"), StopSignal())
