"""What happens around a step. A hook sees plain numbers; it decides nothing about the training."""

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Protocol

from checkpoints_mgr import SaveResult
from launcher.contract.identity import Identity
from launcher.contract.run_dir import BEAT_S, AttemptDir, Phase, RankStatus
from monitoring import History, WorkerMetrics
from vpred_train.config import TrainConfig
from vpred_train.speed import Speed
from vpred_train.step import StepResult
from vpred_train.watchdog import Waits

logger = logging.getLogger(__name__)

STATUS_INTERVAL_S = 1.0


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


class Hook(Protocol):
    """Called by the trainer on every rank."""

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


class StatusHook:
    """Writes this rank's status file: at each new phase, at most once a second at steps, and every BEAT_S in any case,
    from a thread of its own: so the launcher can tell a rank that waits from one that is stuck."""

    def __init__(self, identity: Identity, pid: int, config: TrainConfig, attempt: AttemptDir, waits: Waits) -> None:
        self.identity, self.pid, self.config = identity, pid, config
        self.path = attempt.status(identity.rank)
        self.waits = waits
        self.phase: Phase = "starting"
        self.phase_unix_s: dict[Phase, float] = {}
        self.resumed_step: int | None = None
        self.step, self.samples_seen = 0, 0
        self.loss: float | None = None
        self.images_per_second: float | None = None
        self.checkpoint_step: int | None = None
        self.steps, self.own_seconds = 0, 0.0
        self.written_s = 0.0
        self.writing, self.closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="status").start()

    def on_phase(self, phase: Phase, step: int, samples_seen: int) -> None:
        if phase != "starting" and self.resumed_step is None:
            self.resumed_step = self.checkpoint_step = step
        self._enter(phase)
        self.step, self.samples_seen = step, samples_seen
        self.loss = self.images_per_second = None
        self._write()

    def on_step(self, result: StepResult) -> None:
        self.step, self.samples_seen, self.loss = result.step, result.samples_seen, result.loss
        self.images_per_second = self.config.global_batch / self.identity.world_size / result.step_seconds
        self.steps += 1
        if self.steps > 1:
            self.own_seconds += result.step_seconds - result.collective_seconds
        changed = self.phase != "training"
        self._enter("training")
        if changed or time.monotonic() - self.written_s >= STATUS_INTERVAL_S:
            self._write()

    def on_checkpoint(self, saved: SaveResult) -> None:
        self.checkpoint_step = saved.step

    def on_checkpoint_failed(self, reason: str) -> None:
        pass

    def on_validation(self, step: int, samples_seen: int, losses: Sequence[ValidationLoss]) -> None:
        pass

    def close(self) -> None:
        self.closed.set()

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        # A new dict: the other thread may be writing the old one.
        self.phase_unix_s = {phase: time.time()} | self.phase_unix_s

    def _beat(self) -> None:
        while not self.closed.wait(BEAT_S / 2):
            if time.monotonic() - self.written_s >= BEAT_S / 2:
                # The training's own writes tell of a full disk.
                with suppress(OSError):
                    self._write()

    def _write(self) -> None:
        with self.writing:
            RankStatus(
                rank=self.identity.rank,
                hostname=self.identity.hostname,
                pid=self.pid,
                phase=self.phase,
                step=self.step,
                total_steps=self.config.total_steps,
                samples_seen=self.samples_seen,
                loss=self.loss,
                images_per_second=self.images_per_second,
                waiting=self.waits.now,
                timed_steps=max(0, self.steps - 1),
                own_seconds=self.own_seconds,
                checkpoint_step=self.checkpoint_step,
                resumed_step=self.resumed_step,
                phase_unix_s=self.phase_unix_s,
                updated_unix_s=time.time(),
            ).write(self.path)
            self.written_s = time.monotonic()


class LogHook:
    """Lines for a person who reads this rank's log."""

    def __init__(self, config: TrainConfig, speed: Speed) -> None:
        self.config, self.speed = config, speed

    def on_phase(self, phase: Phase, step: int, samples_seen: int) -> None:
        logger.info("%s (step %d, %d samples seen)", phase, step, samples_seen)

    def on_step(self, result: StepResult) -> None:
        if result.step % self.config.log_every_steps == 0:
            rates = self.speed.rates(result.step_seconds)
            logger.info(
                "step %d of %d: loss %.5f, grad_norm %.3f, learning_rate %.2e, %.2f s (data %.1f ms), "
                "%.2f images/s/device, MFU %.1f %%",
                result.step,
                self.config.total_steps,
                result.loss,
                result.grad_norm,
                result.learning_rate,
                result.step_seconds,
                1000 * result.data_wait_seconds,
                rates.images_per_second_per_device,
                100 * rates.mfu_ratio,
            )

    def on_checkpoint(self, saved: SaveResult) -> None:
        logger.info(
            "checkpoint of step %d: %.1f MB in %.2f s, of which training stood still for %.2f s",
            saved.step,
            saved.size_bytes / 1e6,
            saved.seconds,
            saved.stall_seconds,
        )

    def on_checkpoint_failed(self, reason: str) -> None:
        pass

    def on_validation(self, step: int, samples_seen: int, losses: Sequence[ValidationLoss]) -> None:
        for weights in dict.fromkeys(each.weights for each in losses):
            whole, *bins = (each for each in losses if each.weights == weights)
            by_bin = ", ".join(f"[{each.log_snr_high:.1f}, {each.log_snr_low:.1f}] {each}" for each in bins)
            logger.info("validation of step %d, %s weights: loss %s; by log SNR: %s", step, weights, whole, by_bin)


class MetricsHook:
    """Feeds this rank's Prometheus metrics."""

    def __init__(self, metrics: WorkerMetrics, config: TrainConfig, speed: Speed) -> None:
        self.metrics, self.config, self.speed = metrics, config, speed
        metrics.observe_ceiling(speed.matmul_flops_per_second)

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
            collective_seconds=result.collective_seconds,
            images_per_second=self.config.global_batch / result.step_seconds,
            finite=result.finite,
            overflow=result.overflow,
            loss_scale=result.loss_scale,
            **asdict(self.speed.rates(result.step_seconds)),
        )

    def on_checkpoint(self, saved: SaveResult) -> None:
        self.metrics.observe_checkpoint(
            step=saved.step,
            size_bytes=saved.size_bytes,
            seconds=saved.seconds,
            stall_seconds=saved.stall_seconds,
            phase_seconds={
                "stage": saved.stage_seconds,
                "write": saved.write_seconds,
                "commit": saved.commit_seconds,
            },
        )

    def on_checkpoint_failed(self, reason: str) -> None:
        self.metrics.count_failed_checkpoint()

    def on_validation(self, step: int, samples_seen: int, losses: Sequence[ValidationLoss]) -> None:
        for each in losses:
            timesteps = f"{each.first_timestep}-{each.last_timestep}"
            self.metrics.observe_validation(each.weights, timesteps, each.loss, each.standard_error)


class HistoryHook:
    """Appends every step to metrics.jsonl, from which the report draws its curves, and every held-out loss to
    validation.jsonl. On one rank."""

    def __init__(self, history: History, validations: History, speed: Speed) -> None:
        self.history, self.validations, self.speed = history, validations, speed

    def on_phase(self, phase: Phase, step: int, samples_seen: int) -> None:
        pass

    def on_step(self, result: StepResult) -> None:
        record = {**asdict(result), **asdict(self.speed.rates(result.step_seconds))}
        del record["nonfinite_samples"]  # for the log: a line of the history is plain numbers
        self.history.append({**record, "unix_s": time.time()})

    def on_checkpoint(self, saved: SaveResult) -> None:
        pass

    def on_checkpoint_failed(self, reason: str) -> None:
        pass

    def on_validation(self, step: int, samples_seen: int, losses: Sequence[ValidationLoss]) -> None:
        for each in losses:
            self.validations.append({"step": step, "samples_seen": samples_seen, **asdict(each)})
