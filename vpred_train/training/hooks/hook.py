"""What a hook sees of a run, and the class it extends."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from checkpoints_mgr import SaveResult
from launcher.contract.run_dir import Phase
from vpred_train.engine.step_result import StepResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationLoss:
    """|v - prediction|^2, unweighted, mean over `images`, of timesteps `first_timestep` to `last_timestep`.

    `log_snr_high` and `log_snr_low` are theirs, the low one -inf at zero terminal SNR (null in validation.jsonl).
    `weights`: raw, or the name of an average. `standard_error`: of the mean over images; it holds for other images, not
    between two models on these.
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
    """Called by the trainer on every rank; a subclass has the events that it wants, the others do nothing."""

    def on_phase(self, phase: Phase, step: int, samples_seen: int) -> None:
        """The run enters a phase."""

    def on_step(self, result: StepResult) -> None:
        """A step has ended."""

    def on_checkpoint(self, saved: SaveResult) -> None:
        """A checkpoint is committed; training may be steps ahead of it."""

    def on_checkpoint_failed(self, reason: str) -> None:
        """A checkpoint could not be saved."""

    def on_validation(self, step: int, samples_seen: int, losses: Sequence[ValidationLoss]) -> None:
        """Held-out losses after `step`: for each kind of weights over all timesteps, then of each bin."""
