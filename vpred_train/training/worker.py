"""Runs one rank of a run: its settings from the command line, then its training."""

import argparse
import logging
import os

from launcher.contract.accelerators import HOST_ENGINE_COST, Accelerator
from launcher.contract.config import dump_yaml
from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.contract.identity import Identity
from launcher.contract.process import die_with_parent
from launcher.contract.run_dir import RunDir
from monitoring import MonitorError, Tls, read_users
from vpred_train import runtime
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.distributed.session import RankSession, rank_session
from vpred_train.prepare.recipe import check_world_size
from vpred_train.prepare.recipe_changes import check_run_dir
from vpred_train.training.rank import MetricsPlace, RankContext

logger = logging.getLogger(__name__)


def train(config: TrainConfig, arguments: argparse.Namespace, accelerator: Accelerator) -> ExitCode:
    """Train as the rank that the environment says this process is. Any failure ends all ranks."""
    with rank_session(accelerator, own_log=True) as session:
        if session.identity.launcher != "none":
            die_with_parent(os.getppid())
        rank = make_rank(config, arguments, session)
        from vpred_train.training.run import train_rank  # imports MindSpore, which has its settings now

        return train_rank(rank)


def make_rank(config: TrainConfig, arguments: argparse.Namespace, session: RankSession) -> RankContext:
    """Meet the other ranks, check what only they can know, and describe this rank. Called by all ranks."""
    identity, accelerator = session.identity, session.accelerator
    if accelerator.device_target == "Ascend" and accelerator.engine == "host":
        logger.warning("engine host on ascend: %s", HOST_ENGINE_COST)
    collective = session.start(
        runtime.own_device(identity, arguments.device_ids), arguments.rank_table, arguments.collective_timeout_s
    )
    # Only after rendezvous: msrun's scheduler waits minutes for a rank that exits before it.
    check_world_size(config, identity.world_size)
    precision = config.precision.on(accelerator)
    runtime.require_overflow(precision)
    runtime.require_known_chip(accelerator)
    run = RunDir(arguments.run_dir)
    # Recorded before `precision` is resolved: the run may continue on another accelerator.
    adopt_run_dir(config, run, collective)
    number = arguments.attempt or collective.broadcast_object(run.next_attempt() if session.is_first else None)
    attempt = run.attempt(number)
    attempt.root.mkdir(parents=True, exist_ok=True)
    return RankContext(
        config.model_copy(update={"precision": precision}),
        identity,
        accelerator,
        collective,
        run,
        attempt,
        profiled_steps=arguments.profile,
        device_id=runtime.physical_device(identity, arguments.device_ids),
        metrics_at=metrics_place(arguments, identity),
        run_name=arguments.run_name or run.root.name,
    )


def metrics_place(arguments: argparse.Namespace, identity: Identity) -> MetricsPlace | None:
    """Read what the metrics are served with. Ranks of one host never try the same port.

    With files that cannot be used the rank trains without metrics: a certificate that was renewed badly ends no run.
    """
    if arguments.metrics_port_base is None:
        return None
    first, step = arguments.metrics_port_base + identity.local_rank, identity.local_size
    ports = range(first, first + step * arguments.metrics_port_span, step)
    try:
        tls = None
        if arguments.metrics_certificate is not None:
            files = arguments.metrics_certificate, arguments.metrics_key, arguments.metrics_client_ca
            tls = Tls(*files).context()
        users = read_users(arguments.metrics_users) if arguments.metrics_users else None
    except MonitorError as error:
        logger.warning("this rank trains without metrics: %s", error)
        return None
    return MetricsPlace(arguments.metrics_address, ports, tls, users, arguments.metrics_linger_s)


def adopt_run_dir(config: TrainConfig, run: RunDir, collective: Collective) -> None:
    """Record this recipe in the run directory, or refuse a directory of another recipe. Called by all ranks."""
    check_run_dir(run, config)
    collective.barrier()  # all have read what rank 0 replaces
    if collective.rank == 0:
        run.root.mkdir(parents=True, exist_ok=True)
        write_atomic(run.train_yaml, dump_yaml(config))
