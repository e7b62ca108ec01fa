"""Defines the Prometheus metrics of one rank. Names and units follow prometheus.io/docs/practices/naming.

Counters count what this process did. They start at 0 after a restart, which `rate()` expects. A value restored from a
checkpoint, such as the samples seen, is a gauge. As a counter, it would make a resume look like a burst of work.
A scrape sees one step in many. So sums and counts of all steps are here, and few values of "the last step".
"""

import math
import time
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, disable_created_metrics, values

from monitoring.metric_rows import IDENTITY, METRICS, Metric, RankLabels

PARTS = ("data", "encode", "forward_backward", "collective", "update")
PAUSES = ("checkpoint", "validation", "preview", "snapshot", "compile")
STEP_GAUGES = {
    "loss": "vpred_loss",
    "grad_norm": "vpred_grad_norm",
    "learning_rate": "vpred_learning_rate",
    "loss_scale": "vpred_loss_scale",
    "step": "vpred_step",
    "samples_seen": "vpred_samples_seen",
}
CHECKPOINT_PHASES = {"stage_s": "stage", "write_s": "write", "commit_s": "commit"}


class WorkerMetrics:
    """Holds one rank's metrics in a separate registry, so that ranks and tests share nothing."""

    def __init__(self, labels: RankLabels) -> None:
        # If a web server left PROMETHEUS_MULTIPROC_DIR set, the library would keep its numbers in files of that folder.
        values.ValueClass = values.MutexValue
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._identity: tuple[str, ...] = astuple(labels)
        self._metrics: dict[str, Any] = {}
        for row in METRICS:
            if row.on == "each" or labels.rank == "0":
                self._metrics[row.name] = self._made(row)
        for part in PARTS:
            self._count("vpred_step_part_seconds_total", 0, part)
        for cause in PAUSES:
            self.count_pause(cause, 0)
        process = psutil.Process()
        resident = self._metrics["vpred_process_resident_memory_bytes"].labels(*self._identity)
        resident.set_function(lambda: process.memory_info().rss)

    def observe_step(
        self, numbers: Mapping[str, Any], parts_s: Mapping[str, float], *, samples: float, flops: float
    ) -> None:
        """Record one step. A step that is not finite made no update, and its NaN stays visible.

        numbers: the number of each row of STEP_GAUGES, and two flags: `finite` (an update was made) and `overflow`
            (the loss scale was too large, which is no fault of the run)
        parts_s: time in each part of the step, seconds; together they are the step's duration
        samples, flops: this rank's share of the step
        Raises KeyError: for a missing number.
        """
        for key, name in STEP_GAUGES.items():
            self._set(name, numbers[key])
        if math.isfinite(numbers["loss"]):
            self._observe("vpred_step_loss", numbers["loss"])
        if math.isfinite(numbers["grad_norm"]):
            self._observe("vpred_step_grad_norm", numbers["grad_norm"])
        outcome = "optimizer" if numbers["finite"] else "overflow" if numbers["overflow"] else "nonfinite"
        self._count(f"vpred_{outcome}_steps_total", 1)
        self._observe("vpred_step_seconds", sum(parts_s.values()))
        for part, seconds in parts_s.items():
            self._count("vpred_step_part_seconds_total", seconds, part)
        self._count("vpred_samples_total", samples)
        self._count("vpred_model_flops_total", flops)
        self._set("vpred_last_step_timestamp_seconds", time.time())

    def observe_run(self, info: Mapping[str, str], *, total_steps: int, total_samples: int, global_batch: int) -> None:
        """Record what is fixed for the run.

        info: the labels of vpred_run_info
        """
        row = next(each for each in METRICS if each.name == "vpred_run_info")
        self._set(row.name, 1, *(info[label] for label in row.labels))
        self._set("vpred_total_steps", total_steps)
        self._set("vpred_total_samples", total_samples)
        self._set("vpred_global_batch_samples", global_batch)

    def observe_ceiling(self, flops_per_second: float) -> None:
        """Record the speed of matrix products on this rank."""
        self._set("vpred_flops_ceiling", flops_per_second)

    def observe_device_memory(self, size_bytes: Mapping[str, int]) -> None:
        """Record bytes of the device's memory by kind. A device that reports none has no series."""
        for kind, kind_bytes in size_bytes.items():
            self._set("vpred_device_memory_bytes", kind_bytes, kind)

    def observe_compilations(self, *, seconds: float, cache_hits: int) -> None:
        """Record the time for this process's training graphs, and how many came from the cache."""
        self._set("vpred_graph_compile_seconds", seconds)
        self._set("vpred_graph_cache_hits", cache_hits)

    def count_pause(self, cause: str, seconds: float) -> None:
        """Add time between steps. A cause that is not in PAUSES gets its own series."""
        self._count("vpred_pause_seconds_total", seconds, cause)

    def observe_checkpoint(self, numbers: Mapping[str, Any]) -> None:
        """Record one committed checkpoint.

        numbers: step, size_bytes, total_s, stall_s, and the keys of CHECKPOINT_PHASES
        Raises KeyError: for a missing number.
        """
        self._set("vpred_checkpoint_size_bytes", numbers["size_bytes"])
        self._observe("vpred_checkpoint_save_seconds", numbers["total_s"])
        self._observe("vpred_checkpoint_stall_seconds", numbers["stall_s"])
        for key, phase in CHECKPOINT_PHASES.items():
            self._set("vpred_checkpoint_phase_seconds", numbers[key], phase)
        self.observe_newest_checkpoint(numbers["step"], time.time())

    def observe_newest_checkpoint(self, step: int, committed_unix_s: float) -> None:
        """Record which checkpoint a resume would continue from."""
        self._set("vpred_checkpoint_last_step", step)
        self._set("vpred_last_checkpoint_timestamp_seconds", committed_unix_s)

    def observe_checkpoint_interval(self, samples: int) -> None:
        """Record how many samples lie between two checkpoints."""
        self._set("vpred_checkpoint_every_samples", samples)

    def count_failed_checkpoint(self) -> None:
        """Count one checkpoint that could not be saved."""
        self._count("vpred_checkpoint_failures_total", 1)

    def count_quarantined(self, count: int) -> None:
        """Count `count` checkpoints that were found corrupt and moved aside."""
        self._count("vpred_checkpoints_quarantined_total", count)

    def observe_left_out(self, samples: int) -> None:
        """Record the number of rows of the data that are left out as bad."""
        self._set("vpred_bad_samples", samples)

    def observe_validation(self, step: int, weights: str, bin_: str, log_snr: str, loss: float, error: float) -> None:
        """Record a held-out loss.

        weights: raw or the name of a moving average
        bin_: "all", or the number of the range of timesteps
        log_snr: the range, such as "3.2..1.0"
        error: standard error of the loss
        """
        self._set("vpred_validation_step", step)
        self._set("vpred_validation_loss", loss, weights, bin_, log_snr)
        self._set("vpred_validation_loss_standard_error", error, weights, bin_, log_snr)

    def _made(self, row: Metric) -> Any:
        """Make the collector of a row. Counters and sums without further labels begin with 0, as `rate()` needs."""
        settings: dict[str, Any] = {"registry": self.registry}
        if row.kind == "histogram":
            settings["buckets"] = row.buckets
        made = _TYPES[row.kind](row.name, row.meaning, (*IDENTITY, *row.labels), **settings)
        if row.kind != "gauge" and not row.labels:
            made.labels(*self._identity)
        return made

    # A rank that does not have a metric ignores it: what only rank 0 shows is known to all.
    def _set(self, name: str, value: float, *labels: str) -> None:
        if name in self._metrics:
            self._metrics[name].labels(*self._identity, *labels).set(value)

    def _observe(self, name: str, value: float) -> None:
        if name in self._metrics:
            self._metrics[name].labels(*self._identity).observe(value)

    def _count(self, name: str, amount: float, *labels: str) -> None:
        if name in self._metrics:
            self._metrics[name].labels(*self._identity, *labels).inc(amount)


_TYPES: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "summary": Summary, "histogram": Histogram}
