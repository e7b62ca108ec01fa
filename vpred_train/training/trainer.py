"""Runs the training loop, and prepares all that its first step needs."""

import logging
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from checkpoints_mgr import CheckpointManager, check_alike
from data import Fetcher, ImageFetcher, Loader, Source, make_order
from launcher.contract.run_dir import Phase
from vpred_train.config.optimizer import power_name
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import record_of
from vpred_train.distributed.collectives import Collective
from vpred_train.ema.snapshots import write_snapshot
from vpred_train.engine.protocol import Step, TrainingState
from vpred_train.engine.step_result import StepResult
from vpred_train.models.networks import Networks
from vpred_train.prepare.recipe_changes import changes, recorded_recipe, refuse
from vpred_train.training.checkpointing import CheckpointSaver
from vpred_train.training.export import views_to_export
from vpred_train.training.hooks.hook import Hook

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


class Observer(Protocol):
    """Looks at the run on all ranks together: before the first step, at intervals and at the end."""

    every_samples: int

    def observe(self, hooks: Sequence[Hook], step: int, samples_seen: int) -> None:
        """Look at the run, report to the hooks, and leave the state unchanged."""


class Trainer:
    """Owns the networks, their state and the step. `run` trains until the end or until asked to stop.

    state, step: those of one engine
    fetcher: loads samples (default: images)
    """

    def __init__(
        self,
        config: TrainConfig,
        networks: Networks,
        source: Source,
        collective: Collective,
        checkpoints: CheckpointManager,
        snapshots: Path,
        state: TrainingState,
        step: Step,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.config, self.networks, self.source = config, networks, source
        self.fetcher = fetcher or ImageFetcher(source, config.data, config.seed)
        self.collective, self.checkpoints, self.snapshots = collective, checkpoints, snapshots
        self.observers: list[Observer] = []
        self.state, self.step = state, step
        self.order = make_order(source, config.data, config.seed, config.global_batch)
        self.saves = CheckpointSaver(config, checkpoints, collective, self.order.samples_per_epoch)
        self.quarantined: tuple[int, ...] = ()
        self.nonfinite_in_a_row = 0
        self.compiled_sizes: set[tuple[int, int]] = set()

    def resume(self) -> int:
        """Restore the newest valid checkpoint, if there is one, and return the step to continue from.

        Raises DriftError: when the ranks do not begin with the same values.
        """
        restored = self.checkpoints.restore(self.state.to_checkpoint())
        if restored is not None:
            validation = self.config.validation
            splits = validation is not None and validation.path is None
            self.state.progress.require_same_samples(restored.state.progress, self.source.name, splits)
            self.quarantined = restored.quarantined
            self.state.from_checkpoint(restored.state)
            self._note_changes(restored.step, restored.state.record)
            logger.info("resumed from step %d, %d samples seen", restored.step, self.samples_seen)
        check_alike(self.collective, "cannot train", self.state.to_checkpoint().whole)
        return self.steps_done

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

    @property
    def samples_seen(self) -> int:
        return self.state.progress.samples_seen

    @property
    def steps_done(self) -> int:
        return self.samples_seen // self.config.global_batch

    def run(self, hooks: Sequence[Hook], stop: StopSignal) -> bool:
        """Train until the end (True) or until any rank is asked to stop (False); both end with a checkpoint."""
        config = self.config
        if self.samples_seen == 0:
            self._observe(hooks, self.observers)
        shapes = self.order.buckets
        if len(shapes.sizes) > 1:
            logger.info("%d graph shapes, each compiled at its first batch: %s", len(shapes.sizes), shapes.describe())
        if len(self.source.counts) > 1:
            logger.info("an epoch takes %s", self._mixture())
        with self._loader() as batches:
            while not self.finished:
                self._announce_new_shape(hooks)
                result = self.step(next(batches))
                for hook in hooks:
                    hook.on_step(result)
                self._stop_if_diverged(result, hooks)
                stopping = self.collective.any(stop.received)
                if config.ema.snapshot_every_samples and self._is_due(config.ema.snapshot_every_samples):
                    self._keep_snapshots()
                if not stopping:  # someone waits for the checkpoint
                    self._observe(hooks, [each for each in self.observers if self._is_due(each.every_samples)])
                self.saves.after_step(self.state, self.steps_done, hooks, last=stopping or self.finished)
                if stopping:
                    break
        return self.finished

    @property
    def finished(self) -> bool:
        return self.samples_seen >= self.config.total_samples

    def _announce_new_shape(self, hooks: Sequence[Hook]) -> None:
        """Announce "compiling" when the next batch is the first of its size: a step's timeout is too short for that."""
        size = self.order.share(self.samples_seen, 0, 1).size
        if size not in self.compiled_sizes:
            self.compiled_sizes.add(size)
            self._announce(hooks, "compiling")

    def _mixture(self) -> str:
        folders = zip(self.config.data.folders, self.source.counts, self.order.taken_per_epoch, strict=True)
        return ", ".join(f"{taken} of {each.path} (has {count})" for each, count, taken in folders)

    def _loader(self) -> Loader:
        return Loader(
            self.source,
            self.fetcher,
            self.config.data,
            self.order,
            rank=self.collective.rank,
            world_size=self.collective.world_size,
            start_samples_seen=self.samples_seen,
            worker=("-P", "-m", "vpred_train.entry", "data.loading.worker"),
        )

    def _stop_if_diverged(self, result: StepResult, hooks: Sequence[Hook]) -> None:
        # Every rank sees the same reduced numbers, so all ranks count alike and stop together.
        if result.overflow:  # neither healthy nor diverged: the next steps decide
            scale = self.state.progress.loss_scale.value
            logger.warning("step %d: the gradient overflowed, update skipped; loss scale now %.0f", result.step, scale)
            return
        self.nonfinite_in_a_row = 0 if result.finite else self.nonfinite_in_a_row + 1
        if not result.finite:
            numbers = f"loss {result.loss}, grad_norm {result.grad_norm}"
            logger.error("step %d: %s; update skipped; not finite: %s", result.step, numbers, self._origins(result))
        if self.nonfinite_in_a_row == self.config.max_nonfinite_steps:
            self.saves.close(hooks)  # a pending checkpoint is older, and may be the best one
            raise DivergedError(
                f"loss or gradient not finite in {self.nonfinite_in_a_row} steps in a row, the last is {result.step}"
            )

    def _origins(self, result: StepResult) -> str:
        """Name the ranks whose local numbers were not finite, and the rows of the table that these come from."""
        return (
            "; ".join(
                f"rank {rank}, samples "
                + ", ".join(f"{each} ({self.source.sample(each).origin})" for each in sample_ids)
                for rank, sample_ids in result.nonfinite_samples.items()
            )
            or "the sum alone, of finite losses and gradients of all ranks"
        )

    def _is_due(self, every_samples: int) -> bool:
        """Return whether this step has passed a multiple of `every_samples`, or is the last."""
        seen = self.samples_seen
        return self.finished or seen // every_samples > (seen - self.config.global_batch) // every_samples

    def _observe(self, hooks: Sequence[Hook], observers: Sequence[Observer]) -> None:
        if observers:
            self._announce(hooks, "validating")
        for observer in observers:
            observer.observe([*hooks, self.saves], self.steps_done, self.samples_seen)

    def _keep_snapshots(self) -> None:
        # Before the checkpoint, so that a run resumed from it lacks none. One resumed earlier writes the same again.
        state, ema = self.state, self.config.ema
        for sigma_rel in ema.sigma_rel:
            name = power_name(sigma_rel)
            tensors = views_to_export(state.space, state.full(name))
            record = record_of(self.config, name, self.samples_seen)
            if self.collective.rank == 0:
                write_snapshot(self.snapshots, sigma_rel, tensors, ema.snapshot_dtype, record)

    def _announce(self, hooks: Sequence[Hook], phase: Phase) -> None:
        for hook in hooks:
            hook.on_phase(phase, self.steps_done, self.samples_seen)
