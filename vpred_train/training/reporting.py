"""Owns what a rank reports to: its log, its status file, its metrics and the run's histories."""

import logging
import os
from contextlib import ExitStack
from importlib.metadata import version
from types import TracebackType
from typing import Self

from monitoring import Exporter, History, MonitorError, WorkerMetrics
from vpred_train.engine.graph_cache import compilations
from vpred_train.training.hooks.hook import Hooks
from vpred_train.training.hooks.profile import ProfileHook
from vpred_train.training.hooks.reporting import HistoryHook, LogHook, MetricsHook
from vpred_train.training.hooks.speed import measure_speed
from vpred_train.training.hooks.status import StatusHook
from vpred_train.training.rank import MetricsPlace, RankContext
from vpred_train.training.trainer import Resumed

logger = logging.getLogger(__name__)


def observe_start(metrics: WorkerMetrics, rank: RankContext, resumed: Resumed, left_out: int) -> None:
    """Record what is known before the first step: the run, and where it continues."""
    config = rank.config
    info = {
        "run_dir": str(rank.run.root.absolute()),
        "accelerator": rank.accelerator.name,
        "engine": rank.accelerator.engine,
        "compute_dtype": config.precision.dtype,
        "world_size": str(rank.identity.world_size),
        "global_batch": str(config.global_batch),
        "version": version("vpred"),
    }
    metrics.observe_run(
        info, total_steps=config.total_steps, total_samples=config.total_samples, global_batch=config.global_batch
    )
    if config.checkpoint.every_samples:
        metrics.observe_checkpoint_interval(config.checkpoint.every_samples)
    if resumed.committed_unix_s is not None:
        metrics.observe_newest_checkpoint(resumed.step, resumed.committed_unix_s)
    metrics.count_quarantined(len(resumed.quarantined))
    metrics.observe_left_out(left_out)


def serve(metrics: WorkerMetrics, at: MetricsPlace) -> Exporter | None:
    """Serve metrics at the first port that is free. Without one, the run goes on without metrics."""
    reason = ""
    for port in at.ports:
        try:
            exporter = Exporter(metrics.registry, at.address, port, at.tls, at.users)
        except MonitorError as error:
            reason = str(error)
            continue
        if reason:
            logger.warning("metrics: port %d is taken; this rank serves them at port %d", at.ports[0], port)
        return exporter
    logger.warning("this rank trains without metrics, after %d ports; %s", len(at.ports), reason)
    return None


class Reporting:
    """Opens a rank's reports, and closes them on every way out. A context manager, entered by all ranks.

    It is entered before anything large is built, so that a rank that does not answer Prometheus is dead.
    hooks: log and status at first; `begin` adds those that must know where the run continues
    """

    def __init__(self, rank: RankContext) -> None:
        self.rank, self.hooks = rank, Hooks()
        self._resources = ExitStack()
        self._metrics = WorkerMetrics(rank.labels)
        self._exporter: Exporter | None = None

    def __enter__(self) -> Self:
        rank = self.rank
        status = StatusHook(rank.identity, os.getpid(), rank.config, rank.attempt, rank.collective.timer)
        self._resources.callback(status.close)
        if rank.metrics_at is not None:
            self._exporter = serve(self._metrics, rank.metrics_at)
        if self._exporter is not None:
            self._resources.callback(self._exporter.close)
            status.metrics_port = self._exporter.port
        status.on_phase("starting", 0, 0)
        self._speed = measure_speed(rank.config, rank.collective, rank.accelerator.ceiling_side)
        self.hooks.add(LogHook(rank.config, self._speed), status)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._exporter is not None and self.rank.metrics_at is not None and kind is None:
            self._exporter.linger(self.rank.metrics_at.linger_s)
        self._resources.close()

    def begin(self, resumed: Resumed, left_out: int) -> None:
        """Feed the metrics, and continue the histories after the resumed step. Rank 0 alone keeps histories.

        left_out: rows of the data that are not trained on
        """
        rank, run = self.rank, self.rank.run
        if self._exporter is not None:
            observe_start(self._metrics, rank, resumed, left_out)
            self.hooks.add(MetricsHook(self._metrics, self._speed, compilations))
        if rank.is_first:
            history, validations = History(run.metrics_jsonl), History(run.validation_jsonl)
            history.truncate_after(resumed.step)
            validations.truncate_after(resumed.step or -1)  # a run that starts over validates before its first step
            self.hooks.add(HistoryHook(history, validations, self._speed))
        if rank.profiled_steps:
            profile = ProfileHook(run.profile(rank.identity.rank), rank.profiled_steps)
            self._resources.callback(profile.close)
            self.hooks.add(profile)
