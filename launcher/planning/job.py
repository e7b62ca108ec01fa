"""The documents of one launch, read and checked: where it runs, what it trains, and into which directory."""

from dataclasses import dataclass

from launcher.cluster.config import ClusterConfig
from launcher.contract.run_dir import RunDir
from launcher.planning.trainer import Trainer
from launcher.records.finding import Finding


@dataclass(frozen=True)
class Job:
    """Both documents; nothing written yet.

    `train_yaml`: the resolved recipe, with which `run` can go on. `found_recipe`: the run directory's own at that
    moment, None without one. `mpi`: what came of a trial of MPI, if there was one.
    """

    cluster: ClusterConfig
    train_yaml: str
    found_recipe: bytes | None
    run: RunDir
    trainer: Trainer
    mpi: Finding | None = None
