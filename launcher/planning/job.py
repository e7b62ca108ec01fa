"""Holds the checked documents of one launch: where it runs, what it trains, and its run directory."""

from dataclasses import dataclass

from launcher.cluster.config import ClusterConfig
from launcher.contract.run_dir import RunDir
from launcher.planning.trainer import Trainer
from launcher.records.finding import Finding


@dataclass(frozen=True)
class Job:
    """Holds both documents. Nothing is written yet.

    train_yaml: the resolved recipe, with which `run` can go on
    found_recipe: the recipe in the run directory at that moment, None without one
    profiled_steps: number of steps that each rank records with MindSpore's profiler
    mpi: result of a trial of MPI, None without a trial
    """

    cluster: ClusterConfig
    train_yaml: str
    found_recipe: bytes | None
    run: RunDir
    trainer: Trainer
    profiled_steps: int = 0
    mpi: Finding | None = None
