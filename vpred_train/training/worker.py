"""Runs one rank, from its identity to its exit code."""

import argparse
import logging
import os
import sys
from contextlib import suppress

from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import dump_yaml
from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.contract.process import die_with_parent
from launcher.contract.run_dir import RunDir
from monitoring import configure_logging
from vpred_train import runtime
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective, make_collective
from vpred_train.errors import is_users
from vpred_train.prepare.recipe import check_world_size
from vpred_train.prepare.recipe_changes import check_run_dir
from vpred_train.training.rank import RankContext

logger = logging.getLogger(__name__)


def train(config: TrainConfig, arguments: argparse.Namespace) -> ExitCode:
    """Train as the rank that the environment says this process is. Any failure ends all ranks."""
    identity = runtime.identify()
    if identity.launcher != "none":
        die_with_parent(os.getppid())
    configure_logging(identity.rank, logging.INFO)
    accelerator = ACCELERATORS[arguments.accelerator or "cpu"]
    device_id = int(arguments.device_ids.split(",")[identity.rank]) if arguments.device_ids else identity.local_rank
    runtime.start(accelerator, identity, device_id, arguments.rank_table)
    kind = accelerator.collective_under(identity.launcher)
    collective = make_collective(kind, identity.world_size, arguments.collective_timeout_s)
    try:
        # Only after rendezvous: msrun's scheduler waits minutes for a rank that exits before it.
        check_world_size(config, identity.world_size)
        precision = config.precision.on(accelerator)
        runtime.require_overflow(precision)
        # Recorded before `precision` is resolved: the run may continue on another accelerator.
        run = RunDir(arguments.run_dir)
        adopt_run_dir(config, run, collective)
        number = arguments.attempt or collective.broadcast_object(run.next_attempt() if identity.rank == 0 else None)
        attempt = run.attempt(number)
        attempt.root.mkdir(parents=True, exist_ok=True)
        port = arguments.metrics_port_base
        config = config.model_copy(update={"precision": precision})
        rank = RankContext(
            config,
            identity,
            accelerator,
            collective,
            run,
            attempt,
            metrics_at=None if port is None else (arguments.metrics_address, port + identity.local_rank),
        )
        from vpred_train.training.run import train_rank  # imports MindSpore, which has its settings now

        outcome = train_rank(rank)
        collective.close()
        return outcome
    except BaseException as error:  # includes SystemExit
        if is_users(error):
            with suppress(OSError):  # its log may be on a full disk
                print(error, file=sys.stderr, flush=True)
            collective.abort(ExitCode.BAD_CONFIG)
        # Without an abort the other ranks wait forever: MPI's finalisation is a collective.
        logger.exception("rank %d on %s failed", identity.rank, identity.hostname)
        collective.abort(ExitCode.FAILED)


def adopt_run_dir(config: TrainConfig, run: RunDir, collective: Collective) -> None:
    """Record this recipe in the run directory, or refuse a directory of another recipe. Called by all ranks."""
    check_run_dir(run, config)
    collective.barrier()  # all have read what rank 0 replaces
    if collective.rank == 0:
        run.root.mkdir(parents=True, exist_ok=True)
        write_atomic(run.train_yaml, dump_yaml(config))
