"""Owns what a rank reports to: its log, its status file, its metrics and the run's histories."""

import os
from contextlib import ExitStack
from importlib.metadata import version
from types import TracebackType
from typing import Self

from monitoring import History, WorkerMetrics, start_exporter
from vpred_train.engine.graph_cache import compilations
from vpred_train.training.hooks.hook import Hooks
from vpred_train.training.hooks.profile import ProfileHook
from vpred_train.training.hooks.reporting import HistoryHook, LogHook, MetricsHook
from vpred_train.training.hooks.speed import measure_speed
from vpred_train.training.hooks.status import StatusHook
from vpred_train.training.rank import RankContext
from vpred_train.training.trainer import Resumed


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


class Reporting:
    """Opens a rank's reports, and closes them on every way out. A context manager, entered by all ranks.

    hooks: log and status at first; `begin` adds those that must know where the run continues
    """

    def __init__(self, rank: RankContext) -> None:
        self.rank, self.hooks = rank, Hooks()
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        rank = self.rank
        self._speed = measure_speed(rank.config, rank.collective, rank.accelerator.ceiling_side)
        status = StatusHook(rank.identity, os.getpid(), rank.config, rank.attempt, rank.collective.timer)
        self._resources.callback(status.close)
        self.hooks.add(LogHook(rank.config, self._speed), status)
        self.hooks.on_phase("starting", 0, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()

    def begin(self, resumed: Resumed, left_out: int) -> None:
        """Serve metrics, and continue the histories after the resumed step. Rank 0 alone keeps histories.

        left_out: rows of the data that are not trained on
        """
        rank, run = self.rank, self.rank.run
        if rank.metrics_at is not None:
            metrics = WorkerMetrics(rank.labels)
            self._resources.callback(start_exporter(metrics.registry, *rank.metrics_at).close)
            observe_start(metrics, rank, resumed, left_out)
            self.hooks.add(MetricsHook(metrics, self._speed, compilations))
        if rank.is_first:
            history, validations = History(run.metrics_jsonl), History(run.validation_jsonl)
            history.truncate_after(resumed.step)
            validations.truncate_after(resumed.step or -1)  # a run that starts over validates before its first step
            self.hooks.add(HistoryHook(history, validations, self._speed))
        if rank.profiled_steps:
            profile = ProfileHook(run.profile(rank.identity.rank), rank.profiled_steps)
            self._resources.callback(profile.close)
            self.hooks.add(profile)
