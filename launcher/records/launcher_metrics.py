"""Defines the launcher's metrics, one row each, and renders them for Prometheus.

The launcher writes RUN/launcher.prom, for the textfile collector of Prometheus' node exporter. `vpred-launch serve`
answers with the same metrics of many runs. Both exist between two attempts, when nothing runs, and after the end.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.contract.run_dir import Phase
from launcher.records.attempt_record import LostTime
from launcher.records.run_facts import RUN_STATES, RunFacts

_UNKNOWN = "unknown"
Samples = Iterable[tuple[tuple[str, ...], float | None]]


@dataclass(frozen=True)
class LauncherMetric:
    """Is one metric.

    name: as in Prometheus, where counters end in _total
    labels: those beside `run`
    samples: values of the labels, and the value; None gives no series
    """

    name: str
    kind: Literal["gauge", "counter"]
    labels: tuple[str, ...]
    meaning: str
    samples: Callable[[RunFacts], Samples]


def _one(value: Callable[[RunFacts], float | None]) -> Callable[[RunFacts], Samples]:
    return lambda facts: [((), value(facts))]


def _state(facts: RunFacts) -> Samples:
    return [((state,), facts.state == state) for state in RUN_STATES if state != "waiting"]


def _phases(facts: RunFacts) -> Samples:
    """Count the ranks of a running attempt. Those that have not reported yet are starting."""
    counts: dict[str, int] = dict.fromkeys(get_args(Phase), 0)
    if facts.attempt_runs and facts.record is not None:
        left = [status for rank, status in facts.statuses.items() if rank not in facts.ended]
        for status in left:
            counts[status.phase] += 1
        counts["starting"] += max(0, facts.record.world_size - len(facts.statuses))
    return [((phase,), count) for phase, count in counts.items()]


def _failures(facts: RunFacts) -> Samples:
    """Count failures by host. Each host of the run has a series from the start: increase() sees no first value."""
    hosts = [host for record in facts.records for host in record.hosts] + [place.host for place in facts.plan.ranks]
    counts = dict.fromkeys([*hosts, _UNKNOWN], 0)
    for record in facts.records:
        if record.exit_code not in (None, ExitCode.OK, ExitCode.PREEMPTED):
            counts[record.host or _UNKNOWN] = counts.get(record.host or _UNKNOWN, 0) + 1
    counts[_UNKNOWN] += facts.without_verdict()
    return [((host,), counts[host]) for host in sorted(counts)]


def _lost(facts: RunFacts) -> Samples:
    return [
        ((cause.removesuffix("_s"),), sum(getattr(record.lost, cause) for record in facts.records))
        for cause in LostTime.model_fields
    ]


def _slowness(facts: RunFacts) -> Iterator[tuple[tuple[str, ...], float]]:
    for slow in facts.stragglers if facts.attempt_runs else ():
        status = facts.statuses.get(slow.rank)
        if status is not None and slow.others_step_seconds > 0:
            yield (str(slow.rank), status.hostname), slow.own_step_seconds / slow.others_step_seconds


# Run, attempts, ranks, progress, time, disk.
LAUNCHER_METRICS = (
    LauncherMetric(
        "vpred_launcher_run_state",
        "gauge",
        ("state",),
        "1 for the state of the run, 0 for the others. lost: nothing runs, and the launcher left no verdict.",
        _state,
    ),
    LauncherMetric(
        "vpred_launcher_heartbeat_timestamp_seconds",
        "gauge",
        (),
        "When the launcher last showed that it lives, unix time. It does so every 5 s.",
        _one(lambda facts: facts.heartbeat_unix_s),
    ),
    LauncherMetric(
        "vpred_launcher_attempt",
        "gauge",
        (),
        "Number of the newest start of the ranks.",
        _one(lambda facts: facts.last_attempt),
    ),
    LauncherMetric(
        "vpred_launcher_attempt_running",
        "gauge",
        (),
        "1 while the newest attempt runs.",
        _one(lambda facts: facts.attempt_runs),
    ),
    LauncherMetric(
        "vpred_launcher_attempt_start_timestamp_seconds",
        "gauge",
        (),
        "When the newest attempt began, unix time.",
        _one(lambda facts: None if facts.record is None else facts.record.started_unix_s),
    ),
    LauncherMetric(
        "vpred_launcher_failures_total",
        "counter",
        ("host",),
        "Attempts that failed, by the host that was the cause. Those that left no verdict count for unknown.",
        _failures,
    ),
    LauncherMetric(
        "vpred_launcher_ranks",
        "gauge",
        (),
        "Ranks of the newest attempt.",
        _one(lambda facts: len(facts.plan.ranks) if facts.record is None else facts.record.world_size),
    ),
    LauncherMetric(
        "vpred_launcher_ranks_alive",
        "gauge",
        (),
        "Ranks whose status is younger than 15 s and whose trainer has not ended.",
        _one(lambda facts: len(facts.alive())),
    ),
    LauncherMetric(
        "vpred_launcher_ranks_in_phase",
        "gauge",
        ("phase",),
        "Ranks of the running attempt by the phase that they reported last.",
        _phases,
    ),
    LauncherMetric(
        "vpred_launcher_ranks_waiting",
        "gauge",
        (),
        "Living ranks that are inside a collective.",
        _one(lambda facts: sum(status.waiting for status in facts.alive())),
    ),
    LauncherMetric(
        "vpred_launcher_straggler_ratio",
        "gauge",
        ("rank", "hostname"),
        "A slow rank's own time of a step over the median of the others'. Only slow ranks have a series.",
        _slowness,
    ),
    LauncherMetric(
        "vpred_launcher_step", "gauge", (), "Step that the run has reached.", _one(lambda facts: facts.step)
    ),
    LauncherMetric(
        "vpred_launcher_total_steps", "gauge", (), "Steps of the complete run.", _one(lambda facts: facts.total_steps)
    ),
    LauncherMetric(
        "vpred_launcher_checkpoint_step",
        "gauge",
        (),
        "Step of the newest committed checkpoint, 0 without one.",
        _one(lambda facts: facts.checkpoint_step),
    ),
    LauncherMetric(
        "vpred_launcher_trained_seconds_total",
        "counter",
        (),
        "Time in which steps were made that no earlier attempt had made. Its rate is the goodput.",
        _one(lambda facts: sum(record.trained_s for record in facts.records)),
    ),
    LauncherMetric(
        "vpred_launcher_lost_seconds_total",
        "counter",
        ("cause",),
        "Time in which nothing new was trained, by cause.",
        _lost,
    ),
    LauncherMetric(
        "vpred_launcher_step_timeout_seconds",
        "gauge",
        (),
        "Time without progress of a rank in a step after which the attempt is ended as hung.",
        _one(lambda facts: facts.plan.supervision.timeouts.step_s),
    ),
    LauncherMetric(
        "vpred_launcher_run_dir_free_bytes",
        "gauge",
        (),
        "Free space of the disk with the run directory.",
        _one(lambda facts: facts.free_bytes),
    ),
)


class _Runs(Collector):
    def __init__(self, runs: Sequence[RunFacts]) -> None:
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        """Yield a family of each metric, with the series of all runs that have begun."""
        begun = [facts for facts in self._runs if facts.state != "waiting"]
        for metric in LAUNCHER_METRICS:
            labels = ["run", *metric.labels]
            family: GaugeMetricFamily | CounterMetricFamily = (
                GaugeMetricFamily(metric.name, metric.meaning, labels=labels)
                if metric.kind == "gauge"
                else CounterMetricFamily(metric.name.removesuffix("_total"), metric.meaning, labels=labels)
            )
            for facts in begun:
                for values, value in metric.samples(facts):
                    if value is not None:
                        family.add_metric([facts.name, *values], float(value))
            yield family


def render_launcher_metrics(runs: Sequence[RunFacts]) -> bytes:
    """Render the metrics of runs, whose names differ, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Runs(runs))
    return generate_latest(registry)


def write_launcher_metrics(facts: RunFacts) -> None:
    """Write RUN/launcher.prom atomically. Raises OSError: when it cannot be written."""
    write_atomic(facts.run.launcher_prom, render_launcher_metrics([facts]), fsync=False)
