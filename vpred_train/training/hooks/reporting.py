"""Reports a run's progress while it trains: log lines, Prometheus metrics, metrics.jsonl."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict

from checkpoints_mgr import SaveResult
from launcher.contract.run_dir import Phase
from monitoring import STEP_PARTS, History, WorkerMetrics
from vpred_train import runtime
from vpred_train.config.train import TrainConfig
from vpred_train.engine.graph_cache import Compilations
from vpred_train.engine.step_result import StepResult
from vpred_train.training.hooks.hook import Hook, ValidationLoss
from vpred_train.training.hooks.speed import Speed

logger = logging.getLogger(__name__)


class LogHook(Hook):
    """Writes readable lines to this rank's log."""

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
            saved.total_s,
            saved.stall_s,
        )

    def on_validation(self, step: int, samples_seen: int, losses: Sequence[ValidationLoss]) -> None:
        for weights in dict.fromkeys(each.weights for each in losses):
            whole, *bins = (each for each in losses if each.weights == weights)
            by_bin = ", ".join(f"[{each.log_snr_high:.1f}, {each.log_snr_low:.1f}] {each}" for each in bins)
            logger.info("validation of step %d, %s weights: loss %s; by log SNR: %s", step, weights, whole, by_bin)


class MetricsHook(Hook):
    """Feeds this rank's Prometheus metrics.

    compilations: what this process's training graphs took, which grows while it trains
    """

    def __init__(self, metrics: WorkerMetrics, speed: Speed, compilations: Compilations) -> None:
        self.metrics, self.speed, self.compilations = metrics, speed, compilations
        self._compiled_s = compilations.seconds
        metrics.observe_ceiling(speed.matmul_flops_per_second)

    def on_step(self, result: StepResult) -> None:
        parts_s = {part: getattr(result, name) for part, name in STEP_PARTS.items()}
        # A step that compiles would be the slowest of the night.
        compiled_s = self.compilations.seconds - self._compiled_s
        self._compiled_s = self.compilations.seconds
        parts_s["forward_backward"] = max(0.0, parts_s["forward_backward"] - compiled_s)
        self.metrics.count_pause("compile", compiled_s)
        work = self.speed
        self.metrics.observe_step(vars(result), parts_s, samples=work.images_per_step, flops=work.flops_per_step)
        self.metrics.observe_device_memory(runtime.device_memory())
        self.metrics.observe_compilations(**asdict(self.compilations))

    def on_pause(self, cause: str, seconds: float) -> None:
        self.metrics.count_pause(cause, seconds)

    def on_checkpoint(self, saved: SaveResult) -> None:
        self.metrics.observe_checkpoint(vars(saved))

    def on_checkpoint_failed(self, reason: str) -> None:
        self.metrics.count_failed_checkpoint()

    def on_validation(self, step: int, samples_seen: int, losses: Sequence[ValidationLoss]) -> None:
        for weights in dict.fromkeys(each.weights for each in losses):
            whole, *bins = (each for each in losses if each.weights == weights)
            for name, each in [("all", whole), *((str(number), each) for number, each in enumerate(bins))]:
                log_snr = f"{each.log_snr_high:.1f}..{each.log_snr_low:.1f}"
                self.metrics.observe_validation(step, weights, name, log_snr, each.loss, each.standard_error)


class HistoryHook(Hook):
    """Appends every step to metrics.jsonl and every held-out loss to validation.jsonl. Used on one rank.

    The report draws its curves from both files.
    """

    def __init__(self, history: History, validations: History, speed: Speed) -> None:
        self.history, self.validations, self.speed = history, validations, speed

    def on_step(self, result: StepResult) -> None:
        record = {**asdict(result), **asdict(self.speed.rates(result.step_seconds))}
        del record["nonfinite_samples"]  # only the log shows it: a line of the history is plain numbers
        self.history.append({**record, "unix_s": time.time()})

    def on_validation(self, step: int, samples_seen: int, losses: Sequence[ValidationLoss]) -> None:
        for each in losses:
            self.validations.append({"step": step, "samples_seen": samples_seen, **asdict(each)})
