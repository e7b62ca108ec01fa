"""Sets the variables with which a rank meets the others, for each value of `launcher.init`.

Sources: MindSpore 2.10's communication/management.py and msrun. The variables for Ascend never ran on an NPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster.backends import Init
from launcher.contract.identity import Identity, without_identity

# MindSpore's init() reads OMPI_COMMAND with PMIX_RANK as "use MPI" and then ignores all other variables.
_OF_MPI = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "HYDRA_", "HYDI_", "MPI_LOCAL")
# NPUs have physical ids here. This variable, by which a scheduler names those of a job, would number them again.
VISIBLE_DEVICES = "ASCEND_RT_VISIBLE_DEVICES"
_OF_IDENTITY = ("VPRED_RANK", "VPRED_WORLD_SIZE", "VPRED_LOCAL_RANK", "VPRED_LOCAL_SIZE")


@dataclass(frozen=True)
class Meeting:
    """Says where ranks meet: at `rank_table` for rank_table, at scheduler `host`, `port` for dynamic_cluster.

    timeout_s: time for all ranks to join, s
    device_ids: the physical device of every rank, empty on cpu
    """

    init: Init
    rank_table: Path | None = None
    host: str = ""
    port: int = 0
    timeout_s: float = 0.0
    device_ids: tuple[int, ...] = ()


def rank_environment(env: Mapping[str, str], meeting: Meeting, identity: Identity) -> dict[str, str]:
    """Return the trainer's environment: `env` without other launchers' variables, and with this rank's."""
    if identity.launcher == "slurm":
        env = {name: value for name, value in env.items() if name != VISIBLE_DEVICES}
    if meeting.init == "mpi" or identity.launcher == "msrun":
        return without_identity(env, but=identity.launcher)
    kept = {name: value for name, value in env.items() if not name.startswith((*_OF_MPI, *_OF_IDENTITY))}
    if meeting.init == "rank_table" or identity.world_size == 1:
        return kept | _own(identity) | _table(meeting, identity)
    return kept | _worker(meeting, identity)


def scheduler_environment(env: Mapping[str, str], meeting: Meeting, identity: Identity) -> dict[str, str]:
    """Return the environment of the scheduler: the process beside rank 0 through which ranks find each other."""
    return rank_environment(env, meeting, identity) | {"MS_ROLE": "MS_SCHED"}


def _own(identity: Identity) -> dict[str, str]:
    numbers = (identity.rank, identity.world_size, identity.local_rank, identity.local_size)
    return {name: str(number) for name, number in zip(_OF_IDENTITY, numbers, strict=True)}


def _table(meeting: Meeting, identity: Identity) -> dict[str, str]:
    if meeting.rank_table is None:
        return {}
    return {
        "RANK_TABLE_FILE": str(meeting.rank_table),
        "RANK_ID": str(identity.rank),
        "RANK_SIZE": str(identity.world_size),
        "DEVICE_ID": str(meeting.device_ids[identity.rank]),
    }


def _worker(meeting: Meeting, identity: Identity) -> dict[str, str]:
    return {
        "MS_ROLE": "MS_WORKER",
        "MS_WORKER_NUM": str(identity.world_size),
        "MS_LOCAL_WORKER": str(identity.local_size),
        "MS_NODE_ID": str(identity.rank),
        "MS_SCHED_HOST": meeting.host,
        "MS_SCHED_PORT": str(meeting.port),
        "MS_TOPO_TIMEOUT": f"{meeting.timeout_s:.0f}",
        "RANK_ID": str(identity.rank),
        "RANK_SIZE": str(identity.world_size),
        "DEVICE_ID": str(identity.local_rank),
    }
