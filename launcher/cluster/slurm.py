"""Defines the keys `submit.slurm` of the cluster file, which become options of sbatch."""

from typing import Annotated

from pydantic import Field

from launcher.contract.config import Section


class SlurmConfig(Section):
    """What a job asks of Slurm, for `submit.scheduler: slurm`. Keys with null leave the choice to Slurm."""

    partition: str | None = None
    """Partition that the job is queued in (--partition)."""

    account: str | None = None
    """Name that the hours of the job are charged to (--account)."""

    qos: str | None = None
    """Quality of service of the job (--qos)."""

    time: str | None = None
    """Time limit of each start, such as "08:00:00" or "1-00:00:00" (--time). A run that needs longer is requeued."""

    gres: str | None = None
    """Generic resources of each node, such as npu:8 (--gres). Ascend needs them where Slurm counts the NPUs."""

    cpus_per_task: Annotated[int, Field(ge=1)] | None = None
    """Cores of each rank (--cpus-per-task)."""

    mem: str | None = None
    """Memory of each node, such as 64G (--mem)."""

    exclusive: bool = True
    """Take whole nodes (--exclusive). Two jobs on a node would want the same ports for metrics and HCCL."""

    constraint: str | None = None
    """Features that the nodes must have (--constraint)."""

    reservation: str | None = None
    """Reservation that the job runs in (--reservation)."""

    dependency: str | None = None
    """Jobs that must end first, such as afterok:123 (--dependency). `submit --after` and `--chain` add to it."""

    mail: str | None = None
    """Address that Slurm writes to when the job begins, fails, is requeued or ends (--mail-user)."""

    max_running: Annotated[int, Field(ge=1)] | None = None
    """Number of runs of a sweep that run at the same time. null runs as many as there is room for."""

    arguments: tuple[str, ...] = ()
    """Further options of sbatch, each as after `#SBATCH`. Options that the launcher sets itself are refused."""
