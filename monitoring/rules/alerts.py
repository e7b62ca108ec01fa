"""The alerts. Each has its heading in docs/operations/alerts.md. Thresholds carry their reason."""

from dataclasses import dataclass
from typing import Literal

# page: a person must act now. warn: in working hours. info: for a look back. none: for a machine.
Severity = Literal["page", "warn", "info", "none"]


@dataclass(frozen=True)
class Alert:
    """Describes an alert.

    expr: PromQL, in which a duration outside of brackets stands for its seconds
    lasting: how long it must hold before it fires, None for at once
    summary: one line, in the template language of Prometheus
    """

    name: str
    severity: Severity
    expr: str
    summary: str
    lasting: str | None = None


def _of_run(metric: str, over: str = "") -> str:
    """Return a gauge of a run, or its newest value within `over`, which outlives the process that exports it.

    Several targets may serve one run: `serve` of a folder, `run --serve`, and a node exporter.
    """
    return f"max by (run) (last_over_time({metric}[{over}]))" if over else f"max by (run) ({metric})"


_LAST_STEP = _of_run("vpred_last_step_timestamp_seconds", "6h")
_TRAINS = _of_run('vpred_launcher_ranks_in_phase{phase="training"}') + " > 0"
# `serve` shows a run for ever. An alert of its end must not last as long.
_FAILED = _of_run('vpred_launcher_run_state{state="failed"}')
_ENDED = _of_run('vpred_launcher_run_state{state=~"complete|stopped|failed|lost"}') + " == 1"
_RANKS = _of_run("vpred_launcher_ranks")
_RATE = "run:vpred_samples:rate5m"
_LOSS = "run:vpred_loss:mean5m"
_NORM = "run:vpred_grad_norm:p99_5m"
_INTERVAL_S = f"{_of_run('vpred_checkpoint_every_samples', '1d')} / quantile_over_time(0.5, {_RATE}[1h])"
_FREE_DISK = _of_run("vpred_launcher_run_dir_free_bytes")
_FAILURES = "max by (run, host) (increase(vpred_launcher_failures_total[{}]))"
_FREE = "node_memory_MemAvailable_bytes"


def _grown(metric: str, window: str) -> str:
    """Return how much a gauge of npu-exporter grew by device. -1 is a failed reading, which looks like a reset."""
    return f"sum by (hostname, id) (increase(({metric} >= 0)[{window}:1m]))"


ALERTS = (
    Alert(
        "VpredStalled",
        "page",
        # The launcher ends a hang after supervision.timeouts.step_s (900 s). A frozen exporter's series go stale within
        # minutes, so the newest value of hours counts. `or` is for a run that has no mean of a step yet.
        f"""(time() - {_LAST_STEP}) > (clamp_min(20 * {_of_run("run:vpred_step_seconds:mean5m", "6h")}, 5m)
        or 0 * {_LAST_STEP} + 5m) and on (run) {_TRAINS}""",
        "Run {{ $labels.run }} has made no step for {{ $value | humanizeDuration }}",
        "1m",
    ),
    Alert(
        "VpredRanksMissing",
        "warn",
        # `up == 0` would be one alert a rank, and for ever after each end. `or` is for a run without targets.
        f"""{_RANKS} - (sum by (run) (up{{job="vpred"}}) or 0 * {_RANKS}) > 0
        and on (run) {_of_run("vpred_launcher_attempt_running")} == 1""",
        "Prometheus gets no answer from {{ $value }} ranks of run {{ $labels.run }}",
        "5m",
    ),
    Alert(
        "VpredLauncherGone",
        "page",
        # Its lease is no longer touched, or its series vanished. A run that ended reports attempt_running 0 before.
        # After six hours everybody knows.
        f"""({_of_run("vpred_launcher_attempt_running", "1h")} == 1
        or {_of_run('vpred_launcher_run_state{state="lost"}')} == 1)
        and on (run) (time() - {_of_run("vpred_launcher_heartbeat_timestamp_seconds", "1h")} > 2m) < 6h""",
        "The launcher of run {{ $labels.run }} gives no sign of life, and the run had not ended",
        "2m",
    ),
    Alert(
        "VpredRunFailed",
        "page",
        f"{_FAILED} == 1 unless on (run) {_FAILED.replace('}', '} offset 6h')} == 1",  # after six hours everybody knows
        "Run {{ $labels.run }} has failed, and no restart follows",
    ),
    Alert(
        "VpredRestarted",
        "warn",
        f"{_FAILURES.format('15m')} > 0",
        "Run {{ $labels.run }} lost an attempt, and host {{ $labels.host }} was the cause",
    ),
    Alert(
        "VpredRestartsOften",
        "page",
        # Three within two hours are a bad host or a bug, which further restarts do not end.
        f"sum by (run) ({_FAILURES.format('2h')}) > 2.5",
        'Run {{ $labels.run }} has failed {{ $value | printf "%.0f" }} times within two hours',
    ),
    Alert(
        "VpredNotFinite",
        "page",
        # The third in a row ends the run. A comparison with the loss itself never holds: NaN compares false.
        'sum by (run) (increase(vpred_nonfinite_steps_total{rank="0"}[15m])) > 0',
        "Run {{ $labels.run }} skips steps whose loss or gradient is not finite",
    ),
    Alert(
        "VpredLossUp",
        "warn",
        # The mean of a finetuning's loss moves by 10 to 20 % by itself.
        f"{_LOSS} > 1.5 * quantile_over_time(0.5, {_LOSS}[2h])",
        "The loss of run {{ $labels.run }} is 1.5 times its median of two hours",
        "15m",
    ),
    Alert(
        "VpredGradNormSpike",
        "info",
        f"{_NORM} > 10 * quantile_over_time(0.5, {_NORM}[2h])",  # clipping takes the harm out of most
        "The gradient norm of run {{ $labels.run }} is ten times its median of two hours",
    ),
    Alert(
        "VpredSlower",
        "warn",
        f"{_RATE} < 0.7 * quantile_over_time(0.5, {_RATE}[3h]) and on (run) {_TRAINS}",  # 30 %, as for stragglers
        "Run {{ $labels.run }} trains 30 % slower than in the last three hours",
        "15m",
    ),
    Alert(
        "VpredStraggler",
        "warn",
        # 30 %, as supervision.stragglers.slower_ratio. Ten at most: a bad switch slows hundreds.
        "topk by (run) (10, run_rank:vpred_slowness:ratio5m > 1.3)",
        "Rank {{ $labels.rank }} on {{ $labels.hostname }} (device {{ $labels.device_id }}) takes"
        ' {{ $value | printf "%.1f" }} times as long as the median rank of {{ $labels.run }}',
        "10m",
    ),
    Alert(
        "VpredWaitsForData",
        "warn",
        'run_part:vpred_wall:ratio5m{part="data"} > 0.1',  # a tenth of the machines' time
        "Run {{ $labels.run }} waits for data {{ $value | humanizePercentage }} of the time",
        "15m",
    ),
    Alert(
        "VpredCheckpointOld",
        "page",
        # One late checkpoint is a hiccup, two are a fault. Within 15 minutes it is no fault at any interval.
        f"""time() - {_of_run("vpred_last_checkpoint_timestamp_seconds", "1d")} > clamp_min(2.5 * {_INTERVAL_S}, 15m)
        unless on (run) {_ENDED}""",
        "The newest checkpoint of run {{ $labels.run }} is {{ $value | humanizeDuration }} old",
        "5m",
    ),
    Alert(
        "VpredCheckpointFailed",
        "page",
        "sum by (run) (increase(vpred_checkpoint_failures_total[1h])) > 0",
        "A checkpoint of run {{ $labels.run }} could not be saved",
    ),
    Alert(
        "VpredDiskFills",
        "page",
        # Six hours are time to act at night.
        f"""(predict_linear({_FREE_DISK}[1h:1m], 6h) < 0
        or {_FREE_DISK} < {_of_run("vpred_checkpoint_size_bytes", "1d")}) unless on (run) {_ENDED}""",
        "The disk of run {{ $labels.run }} is full within six hours, or has no room for a checkpoint",
        "10m",
    ),
    Alert(
        "VpredHostMemory",
        "warn",
        f"{_FREE} / node_memory_MemTotal_bytes < 0.05 or predict_linear({_FREE}[1h], 2h) < 0",  # else a rank is killed
        "Host {{ $labels.hostname }} runs out of memory",
        "5m",
    ),
    Alert(
        "NpuUnhealthy",
        "page",
        " or ".join(f"npu_chip_info_{part}_status == 0" for part in ("health", "network", "link")),  # -1: not read
        "Health, network or link of NPU {{ $labels.id }} of {{ $labels.hostname }} is bad",
        "2m",
    ),
    Alert(
        "NpuHot",
        "warn",
        "npu_chip_info_temperature > 90 or npu_chip_info_hbm_temperature > 95",  # set them to the product's limits
        "NPU {{ $labels.id }} of {{ $labels.hostname }} has {{ $value }} °C",
        "5m",
    ),
    Alert(
        "NpuMemoryErrors",
        "page",
        f"{_grown('npu_chip_info_hbm_ecc_double_bit_error_cnt', '1h')} > 0",
        "The HBM of NPU {{ $labels.id }} of {{ $labels.hostname }} has double bit errors",
    ),
    Alert(
        "NpuLinkErrors",
        "warn",
        # They come before the codes EI0012 and EI0013 that end a run.
        f"""{_grown("npu_chip_info_hccs_statistic_info_crc_err_cnt", "15m")} > 0
        or {_grown("npu_chip_roce_new_pkt_rty_num", "15m")} > 100 or {_grown("npu_chip_link_up_num", "15m")} > 0""",
        "The links of NPU {{ $labels.id }} of {{ $labels.hostname }} have errors, retries or flaps",
        "5m",
    ),
    Alert("VpredWatchdog", "none", "vector(1)", "Always fires: when it stops, alerts no longer arrive"),
)
