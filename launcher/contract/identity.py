"""Finds this process's rank: one table row per launch environment, read from environment variables only.

A shell may have the variables of a launcher that did not start this process. They count where they are complete and
agree. Variables that contradict each other are the user's mistake.
"""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.contract.config import ConfigError

# Slurm's pseudo steps (slurm.h: 0xfffffffa interactive .. 0xfffffffd pending): a shell in an allocation is no task.
_FIRST_PSEUDO_STEP = 0xFFFFFFF0
_MOST_DIGITS = 10


@dataclass(frozen=True)
class Identity:
    """Says which rank this process is.

    rank: number among the `world_size` ranks
    local_rank: number among the `local_size` ranks on `hostname`
    launcher: name of the table row
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    hostname: str
    launcher: str


@dataclass(frozen=True)
class _Row:
    """Describes one launch environment: it is present when all of `marks` are set.

    Each other tuple names alternatives: the first variable that is set counts.
    """

    launcher: str
    marks: tuple[str, ...]
    rank: tuple[str, ...]
    world_size: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...]


_OPENMPI = _Row(
    "openmpi",
    ("OMPI_COMM_WORLD_RANK",),
    ("OMPI_COMM_WORLD_RANK",),
    ("OMPI_COMM_WORLD_SIZE",),
    ("OMPI_COMM_WORLD_LOCAL_RANK",),
    ("OMPI_COMM_WORLD_LOCAL_SIZE",),
)
# Order matters. This project's launcher sets its variables last, so they come first. msrun inside a Slurm job started
# this process last. mpirun inside a Slurm job sets its variables beside Slurm's, and srun --mpi=pmix sets PMIX_RANK
# beside SLURM_PROCID. Bare PMIx (prun) gives only the rank (open-mpi/ompi#9167): its caller must set the VPRED_
# variables. msrun gives no local size, AscendJob does; without it all ranks count as local.
_ROWS = (
    _Row(
        "vpred",
        ("VPRED_RANK",),
        ("VPRED_RANK",),
        ("VPRED_WORLD_SIZE",),
        ("VPRED_LOCAL_RANK",),
        ("VPRED_LOCAL_SIZE",),
    ),
    _Row(
        "msrun",
        ("MS_ROLE",),
        ("RANK_ID",),
        ("MS_WORKER_NUM",),
        ("DEVICE_ID",),
        ("MS_LOCAL_WORKER", "MS_WORKER_NUM"),
    ),
    _OPENMPI,
    _Row(
        "mpich",
        ("PMI_RANK", "MPI_LOCALRANKID"),
        ("PMI_RANK",),
        ("PMI_SIZE",),
        ("MPI_LOCALRANKID",),
        ("MPI_LOCALNRANKS",),
    ),
    _Row(
        "slurm",
        ("SLURM_PROCID", "SLURM_STEP_ID"),
        ("SLURM_PROCID",),
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        ("SLURM_LOCALID",),
        ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"),
    ),
    _Row(
        "pmix",
        ("PMIX_RANK",),
        ("PMIX_RANK",),
        ("VPRED_WORLD_SIZE",),
        ("VPRED_LOCAL_RANK",),
        ("VPRED_LOCAL_SIZE",),
    ),
)


# The variables by which each launcher, this one included, identifies its processes. Users' settings, such as
# OMPI_MCA_btl, have other names.
_TOLD_BY = {
    "vpred": r"VPRED_(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_SIZE)",
    "msrun": r"MS_(ROLE|WORKER_NUM|LOCAL_WORKER|NODE_ID|SERVER_NUM|SCHED_\w+)|RANK_(ID|SIZE|TABLE_FILE)|DEVICE_ID",
    "openmpi": r"OMPI_(?!MCA_|ALLOW_)\w+|OMPI_MCA_(initial_wdir|num_procs|cpu_type|PREFIXES|ess\w*|shmem_RUNTIME\w*)"
    r"|OMPI_MCA_orte_(ess|hnp|local_daemon|jobfam|top_session|app_num|bound|launch|num_nodes|cpu|precondition)\w*"
    r"|PRTE_(?!MCA_|PREFIX$)\w+",
    "pmix": r"PMIX_(?!MCA_|PREFIX$|INSTALL_PREFIX$)\w+",
    "mpich": r"PMI_\w+|MPI_LOCAL(RANKID|NRANKS)|HYDI_\w+",
}
# Through PMIx the processes of Open MPI's mpirun and of srun find each other.
_ALSO_BY = {"openmpi": ("openmpi", "pmix"), "slurm": ("slurm", "pmix")}


def tells_identity(name: str, but: str = "") -> bool:
    """Return whether launchers other than `but` use the variable `name` to identify their processes."""
    kept = _ALSO_BY.get(but, (but,))
    return any(re.fullmatch(pattern, name) for launcher, pattern in _TOLD_BY.items() if launcher not in kept)


def without_identity(env: Mapping[str, str], but: str = "") -> dict[str, str]:
    """Return `env` without the variables by which launchers other than `but` identify this process."""
    return {name: value for name, value in env.items() if not tells_identity(name, but)}


def is_scheduler(env: Mapping[str, str]) -> bool:
    """Return whether this process is msrun's scheduler, through which the ranks that msrun started find each other.

    Raises ConfigError: when it is, but lacks the number of workers, the host or the port.
    """
    if env.get("MS_ROLE") != "MS_SCHED":
        return False
    absent = [name for name in ("MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT") if name not in env]
    if absent:
        raise ConfigError(
            f"msrun environment: MS_ROLE is 'MS_SCHED' but {absent[0]} is not set; unset MS_ROLE if it is left over"
        )
    return True


def read_identity(env: Mapping[str, str]) -> Identity:
    """Read this process's identity from `env`. Outside any launch environment it is rank 0 of 1, launcher "none".

    Do not call it in msrun's scheduler (see is_scheduler), which is no rank although its environment names one.
    Raises ConfigError: when a variable is missing, not a number or out of range, or when msrun and Open MPI disagree.
    """
    row = next((row for row in _ROWS if all(mark in env for mark in row.marks) and _is_task(row, env)), None)
    if row is None:
        return Identity(0, 1, 0, 1, socket.gethostname(), "none")
    identity = _identity(row, env)
    # Neither of these two starts the other, so the variables cannot say which of them started this process.
    if row.launcher == "msrun" and _OPENMPI.marks[0] in env:
        other = _identity(_OPENMPI, env)
        if (other.rank, other.world_size) != (identity.rank, identity.world_size):
            raise ConfigError(
                f"environment: msrun says that this is rank {identity.rank} of {identity.world_size}, Open MPI rank "
                f"{other.rank} of {other.world_size}; unset what is left of one: MS_ROLE or OMPI_COMM_WORLD_RANK"
            )
    return identity


def _identity(row: _Row, env: Mapping[str, str]) -> Identity:
    if row.launcher == "msrun" and env["MS_ROLE"] != "MS_WORKER":
        raise ConfigError(f"msrun environment: MS_ROLE is {env['MS_ROLE']!r}, not MS_WORKER or MS_SCHED; unset it")
    identity = Identity(
        rank=_number(env, row, row.rank),
        world_size=_number(env, row, row.world_size),
        local_rank=_number(env, row, row.local_rank),
        local_size=_number(env, row, row.local_size),
        hostname=socket.gethostname(),
        launcher=row.launcher,
    )
    if not (
        0 <= identity.rank < identity.world_size
        and 0 <= identity.local_rank < identity.local_size <= identity.world_size
    ):
        raise ConfigError(f"{row.launcher} environment variables contradict each other: {identity}; {_remedy(row)}")
    return identity


def _is_task(row: _Row, env: Mapping[str, str]) -> bool:
    return row.launcher != "slurm" or _parsed(row, "SLURM_STEP_ID", env["SLURM_STEP_ID"]) < _FIRST_PSEUDO_STEP


def _number(env: Mapping[str, str], row: _Row, names: tuple[str, ...]) -> int:
    name = next((name for name in names if name in env), None)
    if name is None:
        raise ConfigError(
            f"{row.launcher} environment: {row.marks[0]} is set but {' or '.join(names)} is not; {_remedy(row)}"
        )
    if name.endswith("TASKS_PER_NODE"):
        return _tasks_on_node(row, name, env[name], _parsed(row, "SLURM_NODEID", env.get("SLURM_NODEID", "0")))
    return _parsed(row, name, env[name])


def _parsed(row: _Row, name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _MOST_DIGITS:
        raise ConfigError(f"{row.launcher} environment: {name} is {text[:40]!r}, not a number; {_remedy(row)}")
    return int(text)


def _tasks_on_node(row: _Row, name: str, text: str, node: int) -> int:
    """Return entry `node` of Slurm's run-length list, e.g. "4(x2),1" for 4, 4 and 1 tasks (srun(1))."""
    first = 0
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,10})(?:\(x([0-9]{1,10})\))?", part)
        if match is None:
            found = f"{name} is {text[:40]!r}, not a list such as 4(x2),1"
            raise ConfigError(f"{row.launcher} environment: {found}; {_remedy(row)}")
        first += int(match[2] or 1)
        if node < first:
            return int(match[1])
    raise ConfigError(f"{row.launcher} environment: {name} is {text[:40]!r}, which has no node {node}; {_remedy(row)}")


def _remedy(row: _Row) -> str:
    return f"unset {row.marks[0]} if it is left over from another job"
