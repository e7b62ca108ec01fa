"""Starts a run's checkpoints when they are due and follows them while training continues."""

import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from checkpoints_mgr import CheckpointError, CheckpointManager, DriftError, SaveEvery
from launcher.contract.config import dump_yaml
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import record_of
from vpred_train.distributed.collectives import Collective
from vpred_train.engine.protocol import TrainingState
from vpred_train.training.hooks.hook import Hook
from vpred_train.training.periodic.periodic import Boundary, Periodic
from vpred_train.training.periodic.validation import Validation

logger = logging.getLogger(__name__)

MAX_FAILED_SAVES = 3
LOOK_EVERY_S = 1.0


class SaveRequest:
    """Receives requests for a checkpoint after which the run continues: SIGUSR2 to any rank, or the file `path`.

    looks: this rank (rank 0) looks for `path` once a second and removes it.
    """

    def __init__(self, path: Path, looks: bool) -> None:
        self.path, self.looks = path, looks
        self.looked_s = -LOOK_EVERY_S
        self.received = False
        signal.signal(signal.SIGUSR2, self._remember)

    def take(self) -> bool:
        """Return whether a request came since the last call."""
        received, self.received = self.received, False
        now_s = time.monotonic()
        if self.looks and now_s - self.looked_s >= LOOK_EVERY_S:
            self.looked_s = now_s
            if self.path.exists():
                self.path.unlink(missing_ok=True)
                return True
        return received

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True


class CheckpointSaver(Periodic):
    """Starts a checkpoint when one is due, reports the outcome to the hooks, and tolerates `MAX_FAILED_SAVES` failures
    in a row.

    When the run is stopping or finished it saves, and returns when everything is committed.

    epoch_samples: samples of an epoch
    request: asks for checkpoints from outside
    validation: its held-out loss decides which checkpoints are best
    beside: writes more files when a checkpoint begins, given the samples seen; called by all ranks
    """

    cause = "checkpoint"

    def __init__(
        self,
        config: TrainConfig,
        state: TrainingState,
        checkpoints: CheckpointManager,
        collective: Collective,
        epoch_samples: int,
        request: SaveRequest,
        validation: Validation | None = None,
        beside: Callable[[int], None] | None = None,
    ) -> None:
        self.config, self.state, self.checkpoints, self.collective = config, state, checkpoints, collective
        self.request, self.validation, self.beside = request, validation, beside
        every = config.checkpoint
        self.every = SaveEvery(every.every_samples, every.every_minutes and 60 * every.every_minutes)
        self.each_epoch = SaveEvery(every.every_epochs and every.every_epochs * epoch_samples)
        self.begun_s = time.monotonic()
        self.failed_in_a_row = 0

    def after_step(self, now: Boundary, hooks: Hook) -> None:
        """Check the pending save, and begin one if it is due.

        Raises CheckpointError: when the last save failed, several failed in a row, or the ranks' states differ.
        """
        self._settle(hooks)
        last = now.stopping or now.finished
        busy = self.checkpoints.pending_step
        skips = busy is not None and not last and self.config.checkpoint.on_busy == "skip"
        if not (last or self._is_due(now, takes_request=not skips)):
            return
        if skips:
            logger.warning("step %d: no checkpoint, the one of step %d is not written yet", now.step, busy)
            return
        self._begin(now, hooks, last)

    def close(self, hooks: Hook) -> None:
        """Wait for the pending save, which may be the best one, and tolerate its failure."""
        self._settle(hooks, wait=True)

    def _is_due(self, now: Boundary, takes_request: bool) -> bool:
        # Taken first: a checkpoint that is due anyway answers the request.
        asked = takes_request and self.request.take()
        passed = now.samples_before, now.samples_seen
        if self.every.by_samples(*passed) or self.each_epoch.by_samples(*passed):
            return True
        by_time = self.collective.rank == 0 and self.every.by_time(time.monotonic() - self.begun_s)
        return self.collective.any(asked or by_time)

    def _begin(self, now: Boundary, hooks: Hook, last: bool) -> None:
        self._settle(hooks, wait=True)
        self.begun_s = time.monotonic()
        hooks.on_phase("checkpointing", now.step, now.samples_seen)
        if self.beside is not None:  # now: later the weights have changed
            self.beside(now.samples_seen)
        loss = None if self.validation is None else self.validation.loss_at(now.samples_seen)
        metrics = {} if loss is None else {"validation_loss": loss}
        saved = self.state.to_checkpoint()
        record = record_of(self.config, None, now.samples_seen)
        saved.record.update(train=dump_yaml(self.config), parameterization=record.model_dump_json())
        background = self.config.checkpoint.background and not last
        try:
            self.checkpoints.start_save(now.step, saved, metrics, background=background)
        except CheckpointError as error:
            self._failed(hooks, error, last)
        self._settle(hooks, wait=last, last=last)

    def _settle(self, hooks: Hook, wait: bool = False, last: bool = False) -> None:
        """Report to the hooks how the pending save ended.

        wait: wait until the save has ended; otherwise report it only if it has.
        last: the save must not fail.
        """
        try:
            result = self.checkpoints.wait() if wait else self.checkpoints.poll()
        except CheckpointError as error:
            self._failed(hooks, error, last)
            return
        if result is not None:
            self.failed_in_a_row = 0
            hooks.on_checkpoint(result)

    def _failed(self, hooks: Hook, error: CheckpointError, last: bool) -> None:
        self.failed_in_a_row += 1
        logger.error("%s (failure %d in a row; a run tolerates %d)", error, self.failed_in_a_row, MAX_FAILED_SAVES)
        hooks.on_checkpoint_failed(str(error))
        if last or self.failed_in_a_row > MAX_FAILED_SAVES or isinstance(error, DriftError):
            raise error
