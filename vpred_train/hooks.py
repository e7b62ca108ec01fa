"""What happens around a step. A hook sees plain numbers; it decides nothing about the training."""

import logging
import time
from dataclasses import asdict
from typing import Protocol

from launcher.contract.identity import Identity
from launcher.contract.run_dir import AttemptDir, Phase, RankStatus
from monitoring import History, WorkerMetrics
from vpred_train.config import TrainConfig
from vpred_train.step import StepResult

logger = logging.getLogger(__name__)

STATUS_INTERVAL_S = 1.0


class Hook(Protocol):
    """Called by the trainer on every rank."""

    def on_phase(self, phase: Phase, step: int, samples_seen: int) -> None:
        """The run enters a phase."""

    def on_step(self, result: StepResult) -> None:
        """A step has ended."""

    def on_checkpoint(self, step: int, size_bytes: int, seconds: float) -> None:
        """A checkpoint is committed."""


class StatusHook:
    """Writes this rank's status file, at most once a second within a phase."""

    def __init__(self, identity: Identity, pid: int, config: TrainConfig, attempt: AttemptDir) -> None:
        self.identity, self.pid, self.config = identity, pid, config
        self.path = attempt.status(identity.rank)
        self.phase: Phase = "starting"
        self.written_s = 0.0

    def on_phase(self, phase: Phase, step: int, samples_seen: int) -> None:
        self.phase = phase
        self._write(step, samples_seen, None, None)

    def on_step(self, result: StepResult) -> None:
        changed = self.phase != "training"
        self.phase = "training"
        if changed or time.monotonic() - self.written_s >= STATUS_INTERVAL_S:
            rate = self.config.global_batch / self.identity.world_size / result.step_seconds
            self._write(result.step, result.samples_seen, result.loss, rate)

    def on_checkpoint(self, step: int, size_bytes: int, seconds: float) -> None:
        pass

    def _write(self, step: int, samples_seen: int, loss: float | None, rate: float | None) -> None:
        RankStatus(
            rank=self.identity.rank,
            hostname=self.identity.hostname,
            pid=self.pid,
            phase=self.phase,
            step=step,
            total_steps=self.config.total_steps,
            samples_seen=samples_seen,
            loss=loss,
            images_per_second=rate,
            updated_unix_s=time.time(),
        ).write(self.path)
        self.written_s = time.monotonic()


class LogHook:
    """Lines for a person who reads this rank's log."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def on_phase(self, phase: Phase, step: int, samples_seen: int) -> None:
        logger.info("%s (step %d, %d samples seen)", phase, step, samples_seen)

    def on_step(self, result: StepResult) -> None:
        if result.step % self.config.log_every_steps == 0:
            logger.info(
                "step %d of %d: loss %.5f, grad_norm %.3f, learning_rate %.2e, %.2f s (data %.1f ms)",
                result.step,
                self.config.total_steps,
                result.loss,
                result.grad_norm,
                result.learning_rate,
                result.step_seconds,
                1000 * result.data_wait_seconds,
            )

    def on_checkpoint(self, step: int, size_bytes: int, seconds: float) -> None:
        logger.info("checkpoint of step %d: %.1f MB in %.2f s", step, size_bytes / 1e6, seconds)


class MetricsHook:
    """Feeds this rank's Prometheus metrics."""

    def __init__(self, metrics: WorkerMetrics, config: TrainConfig) -> None:
        self.metrics, self.config = metrics, config

    def on_phase(self, phase: Phase, step: int, samples_seen: int) -> None:
        pass

    def on_step(self, result: StepResult) -> None:
        self.metrics.observe_step(
            loss=result.loss,
            grad_norm=result.grad_norm,
            learning_rate=result.learning_rate,
            samples_seen=result.samples_seen,
            step_seconds=result.step_seconds,
            data_wait_seconds=result.data_wait_seconds,
            images_per_second=self.config.global_batch / result.step_seconds,
            finite=result.finite,
        )

    def on_checkpoint(self, step: int, size_bytes: int, seconds: float) -> None:
        self.metrics.observe_checkpoint(size_bytes=size_bytes, seconds=seconds)


class HistoryHook:
    """Appends every step to metrics.jsonl, from which the report draws its curves. On one rank."""

    def __init__(self, history: History) -> None:
        self.history = history

    def on_phase(self, phase: Phase, step: int, samples_seen: int) -> None:
        pass

    def on_step(self, result: StepResult) -> None:
        self.history.append({**asdict(result), "unix_s": time.time()})

    def on_checkpoint(self, step: int, size_bytes: int, seconds: float) -> None:
        pass
