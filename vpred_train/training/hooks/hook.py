"""Declares the base class of hooks, and the held-out losses that hooks see."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from checkpoints_mgr import SaveResult
from launcher.contract.run_dir import Phase
from vpred_train.engine.step_result import StepResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationLoss:
    """Holds one loss: |v - prediction|^2, unweighted, mean over images and a range of timesteps.

    weights: raw, or the name of an average
    first_timestep, last_timestep: the range, both included
    log_snr_high, log_snr_low: log SNR at the range's ends; the low one is -inf at zero terminal SNR (null in
        validation.jsonl)
    standard_error: standard error of the mean over images; it holds for other images, not between two models on the
        same images
    images: number of images
    """

    weights: str
    first_timestep: int
    last_timestep: int
    log_snr_high: float
    log_snr_low: float
    loss: float
    standard_error: float
    images: int

    def __str__(self) -> str:
        return f"{self.loss:.4f} +- {self.standard_error:.4f}"


class Hook:
    """Receives the trainer's events on every rank. A subclass overrides the events it needs; the others do nothing.

    A hook sees plain numbers. It does not communicate, and never changes the training.
    """

    def on_phase(self, phase: Phase, step: int, samples_seen: int) -> None:
        """The run enters a phase."""

    def on_step(self, result: StepResult) -> None:
        """A step has ended."""

    def on_pause(self, cause: str, seconds: float) -> None:
        """Training has stood still for something else, for `seconds`."""

    def on_checkpoint(self, saved: SaveResult) -> None:
        """A checkpoint is committed; training may be steps ahead of it."""

    def on_checkpoint_failed(self, reason: str) -> None:
        """A checkpoint could not be saved."""

    def on_validation(self, step: int, samples_seen: int, losses: Sequence[ValidationLoss]) -> None:
        """Held-out losses were measured after `step`: for each kind of weights over all timesteps, then of each bin."""


class Hooks(Hook):
    """Passes each event on to several hooks, in their order."""

    def __init__(self, *hooks: Hook) -> None:
        self.hooks = list(hooks)

    def add(self, *hooks: Hook) -> None:
        """Append hooks, which see the events that follow."""
        self.hooks += hooks

    def on_phase(self, phase: Phase, step: int, samples_seen: int) -> None:
        for hook in self.hooks:
            hook.on_phase(phase, step, samples_seen)

    def on_step(self, result: StepResult) -> None:
        for hook in self.hooks:
            hook.on_step(result)

    def on_pause(self, cause: str, seconds: float) -> None:
        for hook in self.hooks:
            hook.on_pause(cause, seconds)

    def on_checkpoint(self, saved: SaveResult) -> None:
        for hook in self.hooks:
            hook.on_checkpoint(saved)

    def on_checkpoint_failed(self, reason: str) -> None:
        for hook in self.hooks:
            hook.on_checkpoint_failed(reason)

    def on_validation(self, step: int, samples_seen: int, losses: Sequence[ValidationLoss]) -> None:
        for hook in self.hooks:
            hook.on_validation(step, samples_seen, losses)
