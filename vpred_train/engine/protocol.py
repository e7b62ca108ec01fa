"""Declares what every engine provides: the state of a run, and the step that changes it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from checkpoints_mgr import State
from data import Batch
from launcher.contract.accelerators import Accelerator
from vpred_train.arrays import FloatArray
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.engine.inputs import ModelInputs
from vpred_train.engine.objective import Objective
from vpred_train.engine.progress import Progress
from vpred_train.engine.step_result import StepResult
from vpred_train.models.networks import Networks


class TrainingState(Protocol):
    """Holds all that a run continues from: weights, optimiser moments, moving averages and progress.

    progress: the plain numbers of the state
    space: the trainable parameters
    """

    progress: Progress
    space: FlatSpace

    def to_checkpoint(self) -> State:
        """Return the state as host arrays: this rank's shards, and whole tensors where all ranks hold the same.

        The arrays may share the state's memory: save them, or copy them, before the next step.
        """

    def from_checkpoint(self, state: State) -> None:
        """Take over the values of a state with the same tensors and ranges, and set the networks' parameters."""

    def full(self, average: str | None) -> FloatArray:
        """Return one average of all trainable parameters, or the raw weights. Called by all ranks.

        average: name of the average; None means the raw weights
        Returns (space.size,) float32, not to be written to.
        """

    def showing(self, average: str) -> AbstractContextManager[None]:
        """Let the networks hold an average inside the `with` block. Called by all ranks.

        Afterwards they hold the raw weights again, bit for bit.
        """


class Step(Protocol):
    """Makes one optimiser step of a state: forward, backward, collectives, clipping, update and moving averages.

    objective: draws timesteps and noise, and weighs the loss
    inputs: makes latents and text of a batch
    """

    objective: Objective
    inputs: ModelInputs

    def __call__(self, batch: Batch) -> StepResult:
        """Train on this rank's share of a global batch. Called by all ranks."""


EngineFactory = Callable[
    [TrainConfig, Networks, Collective, Accelerator, Progress, ModelInputs, Path | None], tuple[TrainingState, Step]
]
