"""Starts a run's checkpoints when they are due and follows them while training continues."""

import logging
import math
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from checkpoints_mgr import CheckpointError, CheckpointManager, DriftError, SaveEvery, SaveResult
from launcher.contract.config import dump_yaml
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import record_of
from vpred_train.distributed.collectives import Collective
from vpred_train.engine.protocol import TrainingState
from vpred_train.training.hooks.hook import Hook, ValidationLoss

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


class CheckpointSaver(Hook):
    """Starts a checkpoint when one is due, reports the outcome to the hooks, and tolerates `MAX_FAILED_SAVES` failures
    in a row.

    It is a hook itself: it records the held-out loss by which the best checkpoints are kept.
    """

    def __init__(
        self, config: TrainConfig, checkpoints: CheckpointManager, collective: Collective, epoch_samples: int
    ) -> None:
        self.config, self.checkpoints, self.collective = config, checkpoints, collective
        every = config.checkpoint
        self.every = SaveEvery(every.every_samples, every.every_minutes and 60 * every.every_minutes)
        self.each_epoch = SaveEvery(every.every_epochs and every.every_epochs * epoch_samples)
        self.request: SaveRequest | None = None
        self.begun_s = time.monotonic()
        self.failed_in_a_row = 0
        self.held_out = (-1, math.nan)  # samples seen, loss

    def after_step(self, state: TrainingState, step: int, hooks: Sequence[Hook], last: bool) -> None:
        """Check the pending save, and begin one if it is due. Called by all ranks at every step boundary.

        last: save, and return when everything is committed.
        Raises CheckpointError: when the last save failed, several failed in a row, or the ranks' states differ.
        """
        self._settle(hooks)
        busy = self.checkpoints.pending_step
        skips = busy is not None and not last and self.config.checkpoint.on_busy == "skip"
        if not (last or self._is_due(state.progress.samples_seen, takes_request=not skips)):
            return
        if skips:
            logger.warning("step %d: no checkpoint, the one of step %d is not written yet", step, busy)
            return
        self._begin(state, step, hooks, last)

    def close(self, hooks: Sequence[Hook]) -> None:
        """Wait for the pending save, and tolerate its failure."""
        self._settle(hooks, wait=True)

    def _is_due(self, seen: int, takes_request: bool) -> bool:
        before = seen - self.config.global_batch
        # Taken first: a checkpoint that is due anyway answers the request.
        asked = takes_request and self.request is not None and self.request.take()
        if self.every.by_samples(before, seen) or self.each_epoch.by_samples(before, seen):
            return True
        by_time = self.collective.rank == 0 and self.every.by_time(time.monotonic() - self.begun_s)
        return self.collective.any(asked or by_time)

    def _begin(self, state: TrainingState, step: int, hooks: Sequence[Hook], last: bool) -> None:
        self._settle(hooks, wait=True)
        self.begun_s = time.monotonic()
        samples_seen = state.progress.samples_seen
        for hook in hooks:
            hook.on_phase("checkpointing", step, samples_seen)
        seen, loss = self.held_out
        metrics = {"validation_loss": loss} if seen == samples_seen and math.isfinite(loss) else {}
        saved = state.to_checkpoint()
        record = record_of(self.config, None, samples_seen)
        saved.record.update(train=dump_yaml(self.config), parameterization=record.model_dump_json())
        try:
            self.checkpoints.start_save(step, saved, metrics, background=self.config.checkpoint.background and not last)
        except CheckpointError as error:
            self._failed(hooks, error, last)
        self._settle(hooks, wait=last, last=last)

    def _settle(self, hooks: Sequence[Hook], wait: bool = False, last: bool = False) -> None:
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
            self._committed(hooks, result)

    def _committed(self, hooks: Sequence[Hook], result: SaveResult) -> None:
        self.failed_in_a_row = 0
        for hook in hooks:
            hook.on_checkpoint(result)

    def _failed(self, hooks: Sequence[Hook], error: CheckpointError, last: bool) -> None:
        self.failed_in_a_row += 1
        logger.error("%s (%d of %d that a run bears in a row)", error, self.failed_in_a_row, MAX_FAILED_SAVES)
        for hook in hooks:
            hook.on_checkpoint_failed(str(error))
        if last or self.failed_in_a_row > MAX_FAILED_SAVES or isinstance(error, DriftError):
            raise error

    def on_validation(self, step: int, samples_seen: int, losses: Sequence[ValidationLoss]) -> None:
        used = [each for each in losses if each.weights == self.config.ema.used]
        if used:  # the first loss covers all timesteps
            self.held_out = (samples_seen, used[0].loss)
