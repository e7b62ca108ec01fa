"""Runs one rank's training: builds its parts, resumes, trains and finishes. Imports MindSpore."""

import json
import logging
from collections.abc import Sequence
from contextlib import closing

from checkpoints_mgr import CheckpointManager
from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.contract.run_dir import RunDir
from vpred_train.engine.engines import ENGINES
from vpred_train.engine.inputs import ModelInputs
from vpred_train.engine.kernel_agreement import agree_on_updates
from vpred_train.engine.progress import Progress
from vpred_train.engine.protocol import TrainingState
from vpred_train.models.build import build_networks
from vpred_train.models.networks import Networks
from vpred_train.prepare.data import OpenedData, open_data
from vpred_train.training.batches import TrainingBatches
from vpred_train.training.export import MindoneExport
from vpred_train.training.finish import finish
from vpred_train.training.inputs import make_inputs
from vpred_train.training.periodic.checkpointing import CheckpointSaver, SaveRequest
from vpred_train.training.periodic.periodic import Periodic
from vpred_train.training.periodic.previews import Previews
from vpred_train.training.periodic.snapshots import EmaSnapshots
from vpred_train.training.periodic.validation import Validation
from vpred_train.training.prediction_probe import check_prediction
from vpred_train.training.rank import RankContext
from vpred_train.training.reporting import Reporting
from vpred_train.training.trainer import DivergedError, StopSignal, Trainer

logger = logging.getLogger(__name__)


def train_rank(rank: RankContext) -> ExitCode:
    """Resume, train and finish. Return 75 when stopped before the end and 76 when diverged. Called by all ranks."""
    stop = StopSignal()
    with closing(stop), Reporting(rank) as reporting:
        data = open_data(rank.config, rank.collective)
        if rank.is_first:
            note_left_out(data.left_out, rank.run)
        trainer = build_trainer(rank, data)
        if rank.is_first:
            log_objective(trainer)
        resumed = trainer.resume()
        if rank.is_first and not trainer.finished:
            rank.run.summary_json.unlink(missing_ok=True)  # the run was complete, and now continues
        reporting.begin(resumed, len(data.left_out))
        if resumed.step == 0:
            check_prediction(rank.config, trainer.networks, data.training, trainer.step.inputs, rank.collective)
        try:
            finished = trainer.run(reporting.hooks, stop)
        except DivergedError as error:
            logger.error("diverged: %s", error)
            return ExitCode.DIVERGED
        if not finished:
            logger.info("stopped on request at step %d", trainer.steps_done)
            return ExitCode.PREEMPTED
        finish(rank, trainer, reporting.hooks)
    return ExitCode.OK


def build_trainer(rank: RankContext, data: OpenedData) -> Trainer:
    """Build networks, state, step and all that acts between the steps. Called by all ranks.

    Raises ConfigError and DataError: for weights or a cache that do not fit the recipe.
    """
    config, run, collective = rank.config, rank.run, rank.collective
    checkpoints = open_checkpoints(rank)
    agree_on_updates(collective, rank.identity.hostname)
    networks = build_networks(config)
    fetcher, inputs = make_inputs(
        config, networks, data.training, data.held_out, collective, run.train_yaml, run.cache_entries
    )
    progress = Progress.fresh(config, data.training.digest, data.held_out_digest)
    graphs = run.graphs(rank.identity.rank)
    state, step = ENGINES[rank.accelerator.engine](
        config, networks, collective, rank.accelerator, progress, inputs, graphs
    )
    batches = TrainingBatches(config, data.training, fetcher, collective)
    periodic = make_periodic(rank, data, networks, state, inputs, checkpoints, batches.order.samples_per_epoch)
    return Trainer(config, networks, state, step, batches, checkpoints, periodic, collective)


def open_checkpoints(rank: RankContext) -> CheckpointManager:
    """Open the run's checkpoints, or this node's, when each node keeps those of its ranks."""
    section = rank.config.checkpoint
    folder, node = section.node_folder, rank.identity.hostname
    return CheckpointManager(
        folder or rank.run.checkpoints,
        rank.collective,
        section.retention(rank.config.global_batch),
        node=node if folder else "",
    )


def make_periodic(
    rank: RankContext,
    data: OpenedData,
    networks: Networks,
    state: TrainingState,
    inputs: ModelInputs,
    checkpoints: CheckpointManager,
    epoch_samples: int,
) -> list[Periodic]:
    """Make what happens between two steps, in the order in which it happens. Checkpoints come last."""
    config, run, collective = rank.config, rank.run, rank.collective
    found: list[Periodic] = []
    if config.ema.snapshot_every_samples:
        found.append(EmaSnapshots(config, state, run.snapshots, config.ema.snapshot_every_samples, rank.is_first))
    validation = None
    if data.held_out is not None:
        validation = Validation(config, networks, state, data.held_out, collective, inputs)
        found.append(validation)
    if config.previews is not None:
        captioned = data.held_out or data.training
        found.append(Previews(config, networks, state, captioned, collective, run.grids))
    unit_samples = config.checkpoint.mindone_unit_samples
    beside = None
    if unit_samples is not None:
        beside = MindoneExport(config, networks, state, run.mindone_ckpt, unit_samples, rank.is_first).write
    request = SaveRequest(run.checkpoint_now, looks=rank.is_first)
    saver = CheckpointSaver(config, state, checkpoints, collective, epoch_samples, request, validation, beside)
    return [*found, saver]


def log_objective(trainer: Trainer) -> None:
    """Log the precision, and how the loss weights the noise levels."""
    mass = ", ".join(map(str, trainer.step.objective.weight_mass))
    logger.info("precision: %s", trainer.config.precision)
    logger.info("objective %s: weight on v (samples) by log SNR: %s", trainer.config.objective.weight, mass)


def note_left_out(left_out: Sequence[tuple[str, str]], run: RunDir) -> None:
    """Write the rows that are not trained on to the run directory, and log how many there are."""
    run.bad_samples_jsonl.unlink(missing_ok=True)
    if left_out:
        lines = [json.dumps({"origin": origin, "reason": reason}, ensure_ascii=False) for origin, reason in left_out]
        write_atomic(run.bad_samples_jsonl, "\n".join(lines) + "\n")
        logger.warning("%d bad samples are left out; they are listed in %s", len(left_out), run.bad_samples_jsonl)
