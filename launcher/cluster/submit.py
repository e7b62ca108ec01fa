"""Defines the cluster file's section on the scheduler that a run is submitted to."""

from typing import Annotated, Literal

from pydantic import Field

from launcher.cluster.kubernetes import KubernetesConfig
from launcher.cluster.slurm import SlurmConfig, Word
from launcher.contract.config import Section


class SubmitConfig(Section):
    """How `vpred-launch submit` asks a scheduler for nodes. The scheduler's allocation declares the hosts."""

    scheduler: Literal["slurm", "kubernetes"] = "slurm"
    """Scheduler that the run is submitted to."""

    nodes: Annotated[int, Field(ge=1, le=1 << 16)] = 1
    """Number of nodes that ranks start on."""

    spare_nodes: Annotated[int, Field(ge=0, le=1 << 16)] = 0
    """Further nodes that the job asks for. They become `restart.spare_hosts` and replace nodes that fail."""

    max_requeues: Annotated[int, Field(ge=0)] = 50
    """Number of times that the job goes back into the queue. `restart.max_without_progress` bounds those in a row that
    leave no newer checkpoint."""

    setup: tuple[Word, ...] = ()
    """Lines of shell that run on the first node before the launcher, such as `source .../set_env.sh`.
    A line that fails ends the job."""

    slurm: SlurmConfig = SlurmConfig()
    """Resources and limits of the Slurm job."""

    kubernetes: Annotated[KubernetesConfig, Field(default_factory=KubernetesConfig)]
    """Resources and limits of the Kubernetes workload."""
