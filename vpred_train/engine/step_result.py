"""What one training step reports: plain numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepResult:
    """What hooks see of a step. Loss and norm are of the global batch; the seconds are this rank's, those of data and
    collectives parts of the step's.

    finite: an update was made. overflow: none was, because the gradient overflowed at `loss_scale`, which has fallen.
    `nonfinite_samples`: rank -> its sample ids, of the ranks whose own loss or gradient was not finite.
    """

    step: int
    samples_seen: int
    loss: float
    grad_norm: float
    learning_rate: float
    finite: bool
    overflow: bool
    loss_scale: float
    nonfinite_samples: dict[int, list[int]]
    step_seconds: float
    data_wait_seconds: float
    collective_seconds: float
