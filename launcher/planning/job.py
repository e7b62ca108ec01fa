"""Holds the checked documents of one launch: where it runs, what it trains, and its run directory."""

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.cluster.config import ClusterConfig
from launcher.contract.run_dir import RunDir
from launcher.planning.trainer import Trainer
from launcher.records.finding import Finding

_CLUSTER_PREFIX = "cluster."


@dataclass(frozen=True)
class Job:
    """Holds both documents. Nothing is written yet.

    train_yaml: the resolved recipe, with which `run` can go on
    found_recipe: the recipe in the run directory at that moment, None without one
    mpi: result of a trial of MPI, None without a trial
    """

    cluster: ClusterConfig
    train_yaml: str
    found_recipe: bytes | None
    run: RunDir
    trainer: Trainer
    mpi: Finding | None = None


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of the cluster file, without their prefix "cluster.", and those of the recipe."""
    ours = [each.removeprefix(_CLUSTER_PREFIX) for each in overrides if each.startswith(_CLUSTER_PREFIX)]
    return ours, [each for each in overrides if not each.startswith(_CLUSTER_PREFIX)]
