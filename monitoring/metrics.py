"""Defines the Prometheus metrics of one rank. Names and units follow prometheus.io/docs/practices/naming.

Counters count what this process did. They start at 0 after a restart, which `rate()` expects. A value restored from a
checkpoint, such as the samples seen, is a gauge. As a counter, it would make a resume look like a burst of work.
"""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values

LABELS = ("rank", "local_rank", "hostname")
STEP_BUCKETS_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
WAIT_BUCKETS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)
SAVE_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


# One row for each metric of a step or a checkpoint: the number that it shows -> its name and meaning.
STEP_GAUGES = {
    "loss": ("vpred_loss", "Loss of the last step, mean over the global batch."),
    "grad_norm": ("vpred_grad_norm", "Global gradient norm of the last step, before clipping."),
    "learning_rate": ("vpred_learning_rate", "Learning rate of the last step."),
    "samples_seen": ("vpred_samples_seen", "Samples trained on since the run began, all ranks."),
    "loss_scale": ("vpred_loss_scale", "Loss scale of the last step; 1 is none."),
    "images_per_second": ("vpred_images_per_second", "Images per second of all ranks together."),
    "images_per_second_per_device": (
        "vpred_images_per_second_per_device",
        "Images per second of this rank in the last step.",
    ),
    "model_flops_per_second": (
        "vpred_model_flops_per_second",
        "Counted floating-point operations of this rank's forward and backward pass per second of the last step.",
    ),
    "mfu_ratio": ("vpred_mfu_ratio", "vpred_model_flops_per_second over vpred_matmul_ceiling_flops_per_second."),
}
STEP_HISTOGRAMS = {
    "step_seconds": ("vpred_step_seconds", "Duration of a step.", STEP_BUCKETS_S),
    "data_wait_seconds": ("vpred_data_wait_seconds", "Part of a step spent waiting for data.", WAIT_BUCKETS_S),
    "collective_seconds": (
        "vpred_collective_seconds",
        "Part of a step in collectives; what is left is this rank's own.",
        STEP_BUCKETS_S,
    ),
}
STEP_OUTCOMES = {
    "updated": ("vpred_optimizer_steps", "Updates made by this process."),
    "overflow": ("vpred_overflow_steps", "Steps skipped to lower the loss scale."),
    "nonfinite": ("vpred_nonfinite_steps", "Steps skipped for a loss or gradient not finite."),
}
CHECKPOINT_GAUGES = {
    "step": ("vpred_checkpoint_last_step", "Step of the last committed checkpoint."),
    "size_bytes": ("vpred_checkpoint_size_bytes", "Size of the last checkpoint, all ranks."),
}
CHECKPOINT_HISTOGRAMS = {
    "total_s": ("vpred_checkpoint_save_seconds", "Time from a checkpoint's start to its commit.", SAVE_BUCKETS_S),
    "stall_s": (
        "vpred_checkpoint_stall_seconds",
        "Time for which a checkpoint held up training.",
        SAVE_BUCKETS_S,
    ),
}
CHECKPOINT_PHASES = {"stage_s": "stage", "write_s": "write", "commit_s": "commit"}


class WorkerMetrics:
    """Holds one rank's metrics in a separate registry, so that ranks and tests share nothing."""

    def __init__(self, rank: int, local_rank: int, hostname: str) -> None:
        # If a web server left PROMETHEUS_MULTIPROC_DIR set, the library would keep its numbers in files of that folder.
        values.ValueClass = values.MutexValue
        self.registry = CollectorRegistry()
        self._values = (str(rank), str(local_rank), hostname)
        self._checkpoint_unix_s = time.time()
        self._add_of_steps()
        self._add_of_checkpoints()
        self._left_out = self._gauge("vpred_bad_samples", "Rows of the data that are left out as bad.")
        self._add_of_validation()
        self._add_of_the_device()
        self._add_readings()

    def _add_of_steps(self) -> None:
        self._step_gauges = {field: self._gauge(*row) for field, row in STEP_GAUGES.items()}
        self._step_histograms = {field: self._histogram(*row) for field, row in STEP_HISTOGRAMS.items()}
        self._outcomes = {outcome: self._counter(*row) for outcome, row in STEP_OUTCOMES.items()}
        self._last_step = self._gauge("vpred_last_step_timestamp_seconds", "When the last step ended, unix time.")
        self._ceiling = self._gauge(
            "vpred_matmul_ceiling_flops_per_second",
            "Speed of this rank's matrix products in the compute dtype at the start, while all ranks compute.",
        )

    def _add_of_checkpoints(self) -> None:
        self._checkpoint_gauges = {field: self._gauge(*row) for field, row in CHECKPOINT_GAUGES.items()}
        self._checkpoint_histograms = {field: self._histogram(*row) for field, row in CHECKPOINT_HISTOGRAMS.items()}
        self._phase_seconds = Gauge(
            "vpred_checkpoint_phase_seconds",
            "Time that the last checkpoint took to stage (copy), write and commit.",
            (*LABELS, "phase"),
            registry=self.registry,
        )
        self._last_checkpoint = self._gauge(
            "vpred_last_checkpoint_timestamp_seconds", "When the last checkpoint was committed, unix time."
        )
        self._failed = self._counter("vpred_checkpoint_failures", "Checkpoints that could not be saved.")
        self._quarantined = self._counter("vpred_checkpoints_quarantined", "Checkpoints found corrupt on a resume.")

    def _add_of_the_device(self) -> None:
        self._device_memory = Gauge(
            "vpred_device_memory_bytes",
            "Memory of this rank's device: allocated to tensors, reserved by MindSpore's pool, and peak allocated.",
            (*LABELS, "kind"),
            registry=self.registry,
        )
        self._compile_seconds = self._gauge(
            "vpred_graph_compile_seconds", "Time in which rank 0 compiled its training graphs or read them."
        )
        self._cache_hits = self._gauge(
            "vpred_graph_cache_hits", "Training graphs that rank 0 read from the cache instead of compiling them."
        )

    def _add_of_validation(self) -> None:
        labels = (*LABELS, "weights", "timesteps")
        self._validation_loss = Gauge(
            "vpred_validation_loss",
            "Held-out loss of v by range of timesteps, mean over images.",
            labels,
            registry=self.registry,
        )
        self._validation_error = Gauge(
            "vpred_validation_loss_standard_error",
            "Standard error of vpred_validation_loss over its images.",
            labels,
            registry=self.registry,
        )

    def observe_step(self, numbers: Mapping[str, Any]) -> None:
        """Record one step. A step that is not finite made no update, and its NaN stays visible.

        numbers: the number of each row of STEP_GAUGES and STEP_HISTOGRAMS, and two flags: `finite` (an update was made)
            and `overflow` (the loss scale was too large, which is no fault of the run)
        Raises KeyError: for a missing number.
        """
        self._show(numbers, self._step_gauges, self._step_histograms)
        self._set(self._last_step, time.time())
        outcome = "updated" if numbers["finite"] else "overflow" if numbers["overflow"] else "nonfinite"
        self._outcomes[outcome].labels(*self._values).inc()

    def observe_ceiling(self, flops_per_second: float) -> None:
        """Record the speed of matrix products on this rank."""
        self._set(self._ceiling, flops_per_second)

    def observe_device_memory(self, size_bytes: Mapping[str, int]) -> None:
        """Record bytes of the device's memory by kind. A device that reports none has no series."""
        for kind, kind_bytes in size_bytes.items():
            self._device_memory.labels(*self._values, kind).set(kind_bytes)

    def observe_compilations(self, *, seconds: float, cache_hits: int) -> None:
        """Record the time for this process's training graphs, and how many came from the cache."""
        self._set(self._compile_seconds, seconds)
        self._set(self._cache_hits, cache_hits)

    def observe_checkpoint(self, numbers: Mapping[str, Any]) -> None:
        """Record one committed checkpoint.

        numbers: the number of each row of CHECKPOINT_GAUGES, CHECKPOINT_HISTOGRAMS and CHECKPOINT_PHASES
        Raises KeyError: for a missing number.
        """
        self._show(numbers, self._checkpoint_gauges, self._checkpoint_histograms)
        self._checkpoint_unix_s = time.time()
        self._set(self._last_checkpoint, self._checkpoint_unix_s)
        for field, phase in CHECKPOINT_PHASES.items():
            self._phase_seconds.labels(*self._values, phase).set(numbers[field])

    def count_failed_checkpoint(self) -> None:
        """Count one checkpoint that could not be saved."""
        self._failed.labels(*self._values).inc()

    def count_quarantined(self, count: int) -> None:
        """Count `count` checkpoints that were found corrupt and moved aside."""
        self._quarantined.labels(*self._values).inc(count)

    def observe_left_out(self, samples: int) -> None:
        """Record the number of rows of the data that are left out as bad."""
        self._set(self._left_out, samples)

    def observe_validation(self, weights: str, timesteps: str, loss: float, standard_error: float) -> None:
        """Record a held-out loss.

        weights: raw or the name of a moving average.
        timesteps: range such as 0-499.
        """
        self._validation_loss.labels(*self._values, weights, timesteps).set(loss)
        self._validation_error.labels(*self._values, weights, timesteps).set(standard_error)

    def _add_readings(self) -> None:
        """Add the gauges that are read at a scrape, and the info series."""
        process = psutil.Process()
        resident = self._gauge("vpred_process_resident_memory_bytes", "Resident memory of this rank's process.")
        resident.labels(*self._values).set_function(lambda: process.memory_info().rss)
        available = self._gauge("vpred_host_memory_available_bytes", "Memory of the host that can still be had.")
        available.labels(*self._values).set_function(lambda: psutil.virtual_memory().available)
        age = self._gauge(
            "vpred_checkpoint_age_seconds",
            "Time since this process last committed a checkpoint, or since its start if it has not yet.",
        )
        age.labels(*self._values).set_function(lambda: time.time() - self._checkpoint_unix_s)
        info = Gauge(
            "vpred_run_info", "Always 1; describes the process.", (*LABELS, "pid", "python"), registry=self.registry
        )
        info.labels(*self._values, str(os.getpid()), platform.python_version()).set(1)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, LABELS, registry=self.registry)

    def _counter(self, name: str, meaning: str) -> Counter:
        """Make a counter; the client appends _total to its name.

        It exists with value 0 before its first count, because `rate()` needs that.
        """
        counter = Counter(name, meaning, LABELS, registry=self.registry)
        counter.labels(*self._values)
        return counter

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(name, meaning, LABELS, registry=self.registry, buckets=buckets)
        histogram.labels(*self._values)
        return histogram

    def _show(
        self, numbers: Mapping[str, Any], gauges: Mapping[str, Gauge], histograms: Mapping[str, Histogram]
    ) -> None:
        for field, gauge in gauges.items():
            self._set(gauge, numbers[field])
        for field, histogram in histograms.items():
            histogram.labels(*self._values).observe(numbers[field])

    def _set(self, gauge: Gauge, value: float) -> None:
        # The series is created only now, because a gauge that was never set must not be read as 0.
        gauge.labels(*self._values).set(value)
