"""Runs the training loop, from a new or a resumed state."""

import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from checkpoints_mgr import CheckpointManager, check_alike
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.engine.protocol import Step, TrainingState
from vpred_train.engine.step_result import StepResult
from vpred_train.models.networks import Networks
from vpred_train.prepare.recipe_changes import changes, recorded_recipe, refuse
from vpred_train.training.batches import TrainingBatches
from vpred_train.training.hooks.hook import Hook
from vpred_train.training.periodic.periodic import Boundary, Periodic

logger = logging.getLogger(__name__)


class DivergedError(Exception):
    """Loss or gradient were not finite in several steps in a row."""


class StopSignal:
    """Remembers that this rank was asked to stop; the ranks agree on it at the next step boundary."""

    NUMBERS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.received = False
        for number in self.NUMBERS:
            signal.signal(number, self._remember)

    def close(self) -> None:
        """Ignore later signals.

        Python restores the default handlers when it exits. A signal would then kill a finished rank that waits for the
        others in MPI's finalisation, and its exit code would be lost.
        """
        for number in self.NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True


@dataclass(frozen=True)
class Resumed:
    """Reports where a run continues.

    step: step of the restored checkpoint, 0 without one
    quarantined: steps whose checkpoints were found corrupt
    committed_unix_s: when that checkpoint was committed, None without one
    """

    step: int
    quarantined: tuple[int, ...] = ()
    committed_unix_s: float | None = None


@contextmanager
def paused(cause: str, hooks: Hook) -> Iterator[None]:
    """Report the time of the `with` block to the hooks."""
    begun_s = time.perf_counter()
    yield
    hooks.on_pause(cause, time.perf_counter() - begun_s)


class Trainer:
    """Trains a state: resumes it, makes its steps, and acts between them.

    networks: the networks that `step` trains
    state, step: those of one engine
    batches: load this rank's samples
    checkpoints: where `resume` looks for the newest one
    periodic: what happens between two steps, in the order in which it happens
    """

    def __init__(
        self,
        config: TrainConfig,
        networks: Networks,
        state: TrainingState,
        step: Step,
        batches: TrainingBatches,
        checkpoints: CheckpointManager,
        periodic: Sequence[Periodic],
        collective: Collective,
    ) -> None:
        self.config, self.networks, self.state, self.step = config, networks, state, step
        self.batches, self.checkpoints, self.periodic, self.collective = batches, checkpoints, periodic, collective
        self.nonfinite_in_a_row = 0
        self.compiled_sizes: set[tuple[int, int]] = set()

    @property
    def samples_seen(self) -> int:
        return self.state.progress.samples_seen

    @property
    def steps_done(self) -> int:
        return self.samples_seen // self.config.global_batch

    @property
    def finished(self) -> bool:
        return self.samples_seen >= self.config.total_samples

    def resume(self) -> Resumed:
        """Restore the newest valid checkpoint, if there is one. Called by all ranks.

        Raises ConfigError: when the checkpoint is of other samples or another recipe.
        Raises DriftError: when the ranks do not begin with the same values.
        """
        restored = self.checkpoints.restore(self.state.to_checkpoint())
        if restored is not None:
            validation = self.config.validation
            splits = validation is not None and validation.path is None
            self.state.progress.require_same_samples(restored.state.progress, self.batches.source.name, splits)
            self.state.from_checkpoint(restored.state)
            self._note_changes(restored.step, restored.state.record)
            logger.info("resumed from step %d, %d samples seen", restored.step, self.samples_seen)
        check_alike(self.collective, "cannot train", self.state.to_checkpoint().whole)
        if restored is None:
            return Resumed(0)
        return Resumed(self.steps_done, restored.quarantined, restored.created_unix_s)

    def run(self, hooks: Hook, stop: StopSignal) -> bool:
        """Train until the end (True) or until any rank is asked to stop (False); both end with a checkpoint.

        Raises DivergedError: after `max_nonfinite_steps` steps in a row without an update.
        """
        self.batches.log_shapes_and_mixture()
        if self.samples_seen == 0:
            for periodic in self.periodic:
                with paused(periodic.cause, hooks):
                    periodic.before_first_step(self._boundary(), hooks)
        with self.batches.after(self.samples_seen) as batches:
            while not self.finished:
                self._announce_new_shape(hooks)
                result = self.step(next(batches))
                hooks.on_step(result)
                self._stop_if_diverged(result, hooks)
                now = self._boundary(stopping=self.collective.any(stop.received))
                for periodic in self.periodic:
                    with paused(periodic.cause, hooks):
                        periodic.after_step(now, hooks)
                if now.stopping:
                    break
        return self.finished

    def _boundary(self, stopping: bool = False) -> Boundary:
        return Boundary(self.steps_done, self.samples_seen, self.config.global_batch, stopping, self.finished)

    def _announce_new_shape(self, hooks: Hook) -> None:
        """Announce "compiling" when the next batch is the first of its size: a step's timeout is too short for that."""
        size = self.batches.next_size(self.samples_seen)
        if size not in self.compiled_sizes:
            self.compiled_sizes.add(size)
            hooks.on_phase("compiling", self.steps_done, self.samples_seen)

    def _stop_if_diverged(self, result: StepResult, hooks: Hook) -> None:
        # Every rank sees the same reduced numbers, so all ranks count alike and stop together.
        if result.overflow:  # neither healthy nor diverged: the next steps decide
            scale = self.state.progress.loss_scale.value
            logger.warning("step %d: the gradient overflowed, update skipped; loss scale now %.0f", result.step, scale)
            return
        self.nonfinite_in_a_row = 0 if result.finite else self.nonfinite_in_a_row + 1
        if not result.finite:
            numbers = f"loss {result.loss}, grad_norm {result.grad_norm}"
            logger.error("step %d: %s; update skipped; not finite: %s", result.step, numbers, self._blamed(result))
        if self.nonfinite_in_a_row == self.config.max_nonfinite_steps:
            for periodic in self.periodic:
                periodic.close(hooks)
            raise DivergedError(
                f"loss or gradient not finite in {self.nonfinite_in_a_row} steps in a row, the last is {result.step}"
            )

    def _blamed(self, result: StepResult) -> str:
        """Name the ranks whose local numbers were not finite, and the rows of the table that these come from."""
        ranks = [
            f"rank {rank}, samples {self.batches.origins(sample_ids)}"
            for rank, sample_ids in result.nonfinite_samples.items()
        ]
        return "; ".join(ranks) or "the sum alone, of finite losses and gradients of all ranks"

    def _note_changes(self, step: int, record: Mapping[str, Any]) -> None:
        """Log and keep the recipe's changes since the checkpoint. Raises ConfigError: when a fixed key has changed."""
        if "train" not in record:  # older checkpoints have none
            return
        # The recorded precision is that of the accelerator that was used then.
        before = recorded_recipe(record["train"])
        found = changes(before.model_copy(update={"precision": self.config.precision}), self.config)
        refuse(f"checkpoint of step {step}", found)
        for each in found:
            if each.on_resume == "logged":
                logger.info("the recipe changed: %s was %r, now %r", each.key, each.before, each.after)
                change = {"key": each.key, "before": each.before, "after": each.after}
                when = {"samples_seen": self.samples_seen, "unix_s": round(time.time())}
                self.state.progress.recipe_changes.append(when | change)
