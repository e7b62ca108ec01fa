"""Declares the plain numbers that one training step reports."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepResult:
    """Holds what hooks see of a step.

    loss, grad_norm: of the global batch
    finite: an update was made
    overflow: no update was made, because the gradient overflowed at `loss_scale`; the scale has been lowered
    nonfinite_samples: rank -> its sample ids, for the ranks whose local loss or gradient was not finite
    step_seconds: this rank's time for the step, seconds
    data_wait_seconds, collective_seconds: this rank's waits for data and in collectives; parts of `step_seconds`. The
    latter is the whole graph's time on the device engine, since its collectives are inside
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
