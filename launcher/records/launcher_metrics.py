"""Writes RUN/launcher.prom: the launcher's metrics, for the textfile collector of Prometheus' node exporter.

It is a file and no port, so that it exists between two attempts, when nothing runs, and after the end.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from launcher.contract.config import Section
from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.contract.run_dir import RunDir


class CountedAttempt(Protocol):
    """Lists what the metrics need of an attempt's record."""

    @property
    def attempt(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def started_unix_s(self) -> float: ...
    @property
    def exit_code(self) -> int | None: ...
    @property
    def host(self) -> str | None: ...
    @property
    def lost(self) -> Section: ...


class _Attempts(Collector):
    def __init__(self, run: str, attempts: Sequence[CountedAttempt]) -> None:
        self._run, self._attempts = run, attempts

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families of one run, from the records of its attempts."""
        last = self._attempts[-1]
        for name, text, value in (
            ("vpred_launcher_attempt", "Number of the newest start of the ranks.", last.attempt),
            ("vpred_launcher_ranks", "Ranks of the newest attempt.", last.world_size),
            ("vpred_launcher_attempt_running", "1 while the newest attempt runs.", last.exit_code is None),
            ("vpred_launcher_attempt_start_timestamp_seconds", "When it began, unix time.", last.started_unix_s),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["run"])
            gauge.add_metric([self._run], float(value))
            yield gauge
        failures = CounterMetricFamily(
            "vpred_launcher_failures", "Attempts that failed, by the host that was the cause.", labels=["run", "host"]
        )
        failed = [
            each.host or "unknown"
            for each in self._attempts
            if each.exit_code not in (None, ExitCode.OK, ExitCode.PREEMPTED)
        ]
        for host in sorted(set(failed)):
            failures.add_metric([self._run, host], failed.count(host))
        yield failures
        lost = CounterMetricFamily(
            "vpred_launcher_lost_seconds", "Time in which nothing new was trained, by cause.", labels=["run", "cause"]
        )
        for cause in type(last.lost).model_fields:
            total = sum(getattr(each.lost, cause) for each in self._attempts)
            lost.add_metric([self._run, cause.removesuffix("_s")], total)
        yield lost


def write_launcher_metrics(run: RunDir, attempts: Sequence[CountedAttempt]) -> None:
    """Write RUN/launcher.prom atomically.

    attempts: at least one

    Raises OSError: when the file cannot be written.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Attempts(run.root.name, attempts))
    write_atomic(run.launcher_prom, generate_latest(registry), fsync=False)
