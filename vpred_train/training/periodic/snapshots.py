"""Writes snapshots of the power-function averages while a run trains."""

from pathlib import Path

from vpred_train.config.optimizer import power_name
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import record_of
from vpred_train.ema.snapshots import write_snapshot
from vpred_train.engine.protocol import TrainingState
from vpred_train.models.weights import stability_views
from vpred_train.training.hooks.hook import Hook
from vpred_train.training.periodic.periodic import Boundary, Periodic


class EmaSnapshots(Periodic):
    """Writes one file for each width of `ema.sigma_rel`, also when the run is stopping.

    It acts before the checkpoint, so that a run resumed from the checkpoint lacks no snapshot. A run resumed from an
    earlier one writes the same files again.

    every_samples: interval in samples seen
    writes: this rank writes the files; true on one rank
    """

    cause = "snapshot"

    def __init__(
        self, config: TrainConfig, state: TrainingState, folder: Path, every_samples: int, writes: bool
    ) -> None:
        self.config, self.state, self.folder = config, state, folder
        self.every_samples, self.writes = every_samples, writes

    def after_step(self, now: Boundary, hooks: Hook) -> None:
        if not now.is_due(self.every_samples):
            return
        for sigma_rel in self.config.ema.sigma_rel:
            name = power_name(sigma_rel)
            tensors = stability_views(self.state.space, self.state.full(name))
            record = record_of(self.config, name, now.samples_seen)
            if self.writes:
                write_snapshot(self.folder, sigma_rel, tensors, self.config.ema.snapshot_dtype, record)
