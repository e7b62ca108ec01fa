"""Assembles one rank's run: data, networks, trainer, hooks."""

import argparse
import json
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from checkpoints_mgr import CheckpointManager
from data import Source
from launcher.contract.accelerators import Accelerator
from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.contract.identity import Identity
from launcher.contract.run_dir import AttemptDir, RunDir
from monitoring import History, WorkerMetrics, start_exporter
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.prepare.data import open_data

logger = logging.getLogger(__name__)


def train_rank(
    config: TrainConfig,
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    identity: Identity,
    collective: Collective,
) -> ExitCode:
    """Resume, train and finish. Return 75 when stopped before the end and 76 when diverged."""
    from vpred_train.engine.engines import ENGINES
    from vpred_train.engine.kernel_agreement import agree_on_updates
    from vpred_train.engine.progress import Progress
    from vpred_train.models.build import build_networks
    from vpred_train.training.checkpointing import SaveRequest
    from vpred_train.training.finish import finish
    from vpred_train.training.inputs import make_inputs
    from vpred_train.training.prediction_probe import check_prediction
    from vpred_train.training.trainer import DivergedError, StopSignal, Trainer

    stop = StopSignal()
    run = RunDir(arguments.run_dir)
    attempt = run.attempt(
        arguments.attempt or collective.broadcast_object(run.next_attempt() if identity.rank == 0 else None)
    )
    attempt.root.mkdir(parents=True, exist_ok=True)
    data = open_data(config, collective)
    if identity.rank == 0:
        note_left_out(data.left_out, run)
    folder = config.checkpoint.node_folder
    checkpoints = CheckpointManager(
        folder or run.checkpoints,
        collective,
        config.checkpoint.retention(config.global_batch),
        node=identity.hostname if folder else "",
    )
    agree_on_updates(collective, identity.hostname)
    networks = build_networks(config)
    fetcher, inputs = make_inputs(
        config, networks, data.training, data.held_out, collective, run.train_yaml, run.cache_entries
    )
    progress = Progress.fresh(config, data.training.digest, data.held_out_digest)
    graphs = run.graphs(identity.rank)
    state, step = ENGINES["host"](config, networks, collective, accelerator, progress, inputs, graphs)
    trainer = Trainer(config, networks, data.training, collective, checkpoints, run.snapshots, state, step, fetcher)
    trainer.saves.request = SaveRequest(run.checkpoint_now, looks=identity.rank == 0)
    trainer.observers += make_observers(config, trainer, data.held_out, run)
    if identity.rank == 0:
        mass = ", ".join(map(str, trainer.step.objective.weight_mass))
        logger.info("precision: %s", config.precision)
        logger.info("objective %s: weight on v (samples) by log SNR: %s", config.objective.weight, mass)
    with ExitStack() as resources:
        resources.callback(stop.close)
        hooks = make_hooks(config, arguments, identity, run, attempt, trainer, len(data.left_out), resources)
        if trainer.steps_done == 0:
            check_prediction(config, networks, data.training, inputs, collective)
        try:
            finished = trainer.run(hooks, stop)
        except DivergedError as error:
            logger.error("diverged: %s", error)
            return ExitCode.DIVERGED
        if not finished:
            logger.info("stopped on request at step %d", trainer.steps_done)
            return ExitCode.PREEMPTED
        finish(config, trainer, run, hooks)
    return ExitCode.OK


def note_left_out(left_out: Sequence[tuple[str, str]], run: RunDir) -> None:
    """Write the rows that are not trained on to the run directory, and log how many there are."""
    run.bad_samples_jsonl.unlink(missing_ok=True)
    if left_out:
        lines = [json.dumps({"origin": origin, "reason": reason}, ensure_ascii=False) for origin, reason in left_out]
        write_atomic(run.bad_samples_jsonl, "\n".join(lines) + "\n")
        logger.warning("%d bad samples are left out; they are listed in %s", len(left_out), run.bad_samples_jsonl)


def make_observers(config: TrainConfig, trainer: Any, held_out: Source | None, run: RunDir) -> list[Any]:
    """Make the observers, which look at the run at intervals: validation and previews."""
    from vpred_train.training.previews import Previews
    from vpred_train.training.trainer import Observer
    from vpred_train.training.validation import Validation

    networks, state, collective = trainer.networks, trainer.state, trainer.collective
    observers: list[Observer] = []
    if held_out is not None:
        observers.append(Validation(config, networks, state, held_out, collective, trainer.step.inputs))
    if config.previews is not None:
        captioned = held_out or trainer.source
        observers.append(Previews(config, networks, state, captioned, collective, run.grids))
    return observers


def make_hooks(
    config: TrainConfig,
    arguments: argparse.Namespace,
    identity: Identity,
    run: RunDir,
    attempt: AttemptDir,
    trainer: Any,
    left_out: int,
    resources: ExitStack,
) -> list[Any]:
    """Resume the trainer, and make its hooks. Only rank 0 keeps the history."""
    from vpred_train.training.export import MindoneCkptHook
    from vpred_train.training.hooks.hook import Hook
    from vpred_train.training.hooks.reporting import HistoryHook, LogHook, MetricsHook
    from vpred_train.training.hooks.speed import measure_speed
    from vpred_train.training.hooks.status import StatusHook

    speed = measure_speed(config, trainer.collective)
    status = StatusHook(identity, os.getpid(), config, attempt, trainer.collective.timer)
    resources.callback(status.close)
    hooks: list[Hook] = [LogHook(config, speed), status]
    for hook in hooks:
        hook.on_phase("starting", 0, 0)
    step = trainer.resume()
    status.checkpoint_step = step or None
    if identity.rank == 0 and not trainer.finished:
        run.summary_json.unlink(missing_ok=True)  # the run was complete, and now continues
    if arguments.metrics_port_base is not None:
        metrics = WorkerMetrics(identity.rank, identity.local_rank, identity.hostname)
        port = arguments.metrics_port_base + identity.local_rank
        exporter = start_exporter(metrics.registry, arguments.metrics_address, port)
        resources.callback(exporter.close)
        metrics.count_quarantined(len(trainer.quarantined))
        metrics.observe_left_out(left_out)
        hooks.append(MetricsHook(metrics, config, speed))
    if identity.rank == 0:
        history, validations = History(run.metrics_jsonl), History(run.validation_jsonl)
        history.truncate_after(step)
        validations.truncate_after(step or -1)  # a run that starts over validates before its first step again
        hooks.append(HistoryHook(history, validations, speed))
    unit_samples, writes = config.checkpoint.mindone_unit_samples, identity.rank == 0
    if unit_samples is not None:
        hooks.append(MindoneCkptHook(config, trainer.networks, trainer.state, run.mindone_ckpt, unit_samples, writes))
    return hooks
