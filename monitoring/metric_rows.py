"""Lists the metrics of one rank: a row for each, from which the metrics are made and their page is generated."""

from dataclasses import dataclass, field, fields
from typing import Literal


@dataclass(frozen=True)
class RankLabels:
    """Names the rank on each of its samples. The keys `hostname` and `device_id` are npu-exporter's, too.

    run: name of the run, unique among those of one Prometheus
    hostname: name of the node, which in Kubernetes is not the pod's
    device_id: physical number of the rank's device on its host
    """

    run: str
    rank: str
    local_rank: str
    hostname: str
    device_id: str


IDENTITY = tuple(each.name for each in fields(RankLabels))


@dataclass(frozen=True)
class Metric:
    """Describes one metric: its full name, type, meaning, further labels, and the ranks that have it.

    on: "each" rank, or only the "first", for what is the same on all ranks
    """

    name: str
    kind: Literal["counter", "gauge", "summary", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    on: Literal["each", "first"] = "first"
    buckets: tuple[float, ...] = field(default=(), repr=False)


GRAD_NORM_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 50)

METRICS = (
    Metric("vpred_step_seconds", "summary", "Duration of steps, without compilation.", on="each"),
    Metric(
        "vpred_step_part_seconds_total",
        "counter",
        "Time in each part of the steps; the parts add up to the steps. On the device engine `graph` is the one graph "
        "with forward and backward pass, collectives and update, which the host cannot measure one by one.",
        ("part",),
        "each",
    ),
    Metric(
        "vpred_samples_total",
        "counter",
        "Samples that this rank trained on; the sum over ranks is the run's.",
        on="each",
    ),
    Metric(
        "vpred_model_flops_total",
        "counter",
        "Counted floating-point operations of forward and backward passes.",
        on="each",
    ),
    Metric("vpred_flops_ceiling", "gauge", "Measured FLOP/s of large matrix products in the compute dtype.", on="each"),
    Metric("vpred_last_step_timestamp_seconds", "gauge", "When the last step ended, unix time.", on="each"),
    Metric("vpred_process_resident_memory_bytes", "gauge", "Resident memory of this rank's process.", on="each"),
    Metric(
        "vpred_device_memory_bytes",
        "gauge",
        "Memory of this rank's device: allocated to tensors, reserved by MindSpore's pool, and peak allocated. "
        "Absent on CPU.",
        ("kind",),
        "each",
    ),
    Metric(
        "vpred_checkpoint_phase_seconds",
        "gauge",
        "Time that the last checkpoint took to stage (copy), write and commit.",
        ("phase",),
        "each",
    ),
    Metric("vpred_checkpoint_failures_total", "counter", "Checkpoints that could not be saved.", on="each"),
    Metric(
        "vpred_run_info",
        "gauge",
        "Always 1; describes the run.",
        ("run_dir", "accelerator", "engine", "compute_dtype", "world_size", "global_batch", "version"),
    ),
    Metric("vpred_loss", "gauge", "Loss of the last step, mean over the global batch. NaN stays visible."),
    Metric("vpred_step_loss", "summary", "Loss of the steps with a finite loss, mean over the global batch."),
    Metric("vpred_grad_norm", "gauge", "Global gradient norm of the last step, before clipping."),
    Metric(
        "vpred_step_grad_norm",
        "histogram",
        "Global gradient norm of the steps with a finite gradient, before clipping.",
        buckets=GRAD_NORM_BUCKETS,
    ),
    Metric("vpred_learning_rate", "gauge", "Learning rate of the last step."),
    Metric("vpred_loss_scale", "gauge", "Loss scale of the last step; 1 is none."),
    Metric("vpred_step", "gauge", "Number of the last step."),
    Metric("vpred_total_steps", "gauge", "Number of the run's last step."),
    Metric("vpred_samples_seen", "gauge", "Samples trained on since the run began, all ranks."),
    Metric("vpred_total_samples", "gauge", "Samples after which the run is complete."),
    Metric("vpred_global_batch_samples", "gauge", "Samples of a step, all ranks."),
    Metric("vpred_optimizer_steps_total", "counter", "Updates made by this process."),
    Metric("vpred_overflow_steps_total", "counter", "Steps skipped to lower the loss scale."),
    Metric("vpred_nonfinite_steps_total", "counter", "Steps skipped for a loss or gradient not finite."),
    Metric(
        "vpred_pause_seconds_total",
        "counter",
        "Time between steps in which the run did something else than train.",
        ("cause",),
    ),
    Metric("vpred_graph_compile_seconds", "gauge", "Time in which rank 0 compiled its training graphs or read them."),
    Metric(
        "vpred_graph_cache_hits", "gauge", "Training graphs that rank 0 read from the cache instead of compiling them."
    ),
    Metric(
        "vpred_validation_loss",
        "gauge",
        "Held-out loss of v, mean over images: over all timesteps (bin=all), and by range of log SNR.",
        ("weights", "bin", "log_snr"),
    ),
    Metric(
        "vpred_validation_loss_standard_error",
        "gauge",
        "Standard error of vpred_validation_loss over its images.",
        ("weights", "bin", "log_snr"),
    ),
    Metric("vpred_validation_step", "gauge", "Step after which vpred_validation_loss was measured."),
    Metric("vpred_checkpoint_save_seconds", "summary", "Time from a checkpoint's start to its commit."),
    Metric("vpred_checkpoint_stall_seconds", "summary", "Time for which a checkpoint held up training."),
    Metric("vpred_checkpoint_last_step", "gauge", "Step of the newest checkpoint, also of the one resumed from."),
    Metric("vpred_checkpoint_size_bytes", "gauge", "Size of the last checkpoint, all ranks."),
    Metric(
        "vpred_last_checkpoint_timestamp_seconds",
        "gauge",
        "When the newest checkpoint was committed, unix time; also of the one resumed from.",
    ),
    Metric("vpred_checkpoint_every_samples", "gauge", "Samples between two checkpoints, where they follow samples."),
    Metric("vpred_checkpoints_quarantined_total", "counter", "Checkpoints found corrupt on a resume."),
    Metric("vpred_bad_samples", "gauge", "Rows of the data that are left out as bad."),
)
