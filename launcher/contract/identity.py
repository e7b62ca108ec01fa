"""Who am I among the ranks: one table row per launch environment, read from environment variables only."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.contract.config import ConfigError

# Slurm's pseudo steps (slurm.h: 0xfffffffa interactive .. 0xfffffffd pending): a shell in an allocation is
# no task.
_FIRST_PSEUDO_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class Identity:
    """`rank` of `world_size`; `local_rank` of `local_size` on `hostname`; `launcher` names the table row."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    hostname: str
    launcher: str


@dataclass(frozen=True)
class _Row:
    """One environment, recognised when all of `marks` are set; of each other tuple the first that is set."""

    launcher: str
    marks: tuple[str, ...]
    rank: tuple[str, ...]
    world_size: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...]


# Order matters: msrun inside a Slurm job is what started us last; mpirun inside one sets its own variables
# beside Slurm's, and srun --mpi=pmix sets PMIX_RANK beside SLURM_PROCID. Bare PMIx (prun) tells only the rank
# (open-mpi/ompi#9167): whoever starts us so must tell the rest. msrun tells no local size, AscendJob does;
# without it all ranks count as local.
# What our own launcher tells is told last of all.
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
    _Row(
        "openmpi",
        ("OMPI_COMM_WORLD_RANK",),
        ("OMPI_COMM_WORLD_RANK",),
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
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


def is_scheduler(env: Mapping[str, str]) -> bool:
    """Whether this is the process beside the ranks through which those that msrun started find each other."""
    return env.get("MS_ROLE") == "MS_SCHED"


def read_identity(env: Mapping[str, str]) -> Identity:
    """The identity `env` gives this process; rank 0 of 1 with launcher "none" outside any launch environment.

    Not for msrun's scheduler (see is_scheduler), which is no rank, although its environment names one.
    Raises ConfigError when a variable is missing, not a number or out of range.
    """
    hostname = socket.gethostname()
    row = next((row for row in _ROWS if all(mark in env for mark in row.marks) and _is_task(row, env)), None)
    if row is None:
        return Identity(0, 1, 0, 1, hostname, "none")
    identity = Identity(
        rank=_number(env, row, row.rank),
        world_size=_number(env, row, row.world_size),
        local_rank=_number(env, row, row.local_rank),
        local_size=_number(env, row, row.local_size),
        hostname=hostname,
        launcher=row.launcher,
    )
    if not (
        0 <= identity.rank < identity.world_size
        and 0 <= identity.local_rank < identity.local_size <= identity.world_size
    ):
        raise ConfigError(f"{row.launcher} environment variables contradict each other: {identity}")
    return identity


def _is_task(row: _Row, env: Mapping[str, str]) -> bool:
    return row.launcher != "slurm" or int(env["SLURM_STEP_ID"]) < _FIRST_PSEUDO_STEP


def _number(env: Mapping[str, str], row: _Row, names: tuple[str, ...]) -> int:
    name = next((name for name in names if name in env), None)
    if name is None:
        raise ConfigError(f"{row.launcher} environment: {row.marks[0]} is set but {' or '.join(names)} is not")
    text = env[name]
    if name.endswith("TASKS_PER_NODE"):
        return _tasks_on_node(name, text, int(env.get("SLURM_NODEID", "0")))
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"{row.launcher} environment: {name} is {text!r}, not a number")
    return int(text)


def _tasks_on_node(name: str, text: str, node: int) -> int:
    """Entry `node` of Slurm's run-length list, e.g. "4(x2),1" for 4, 4 and 1 tasks (srun(1))."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ConfigError(f"slurm environment: {name} is {text!r}, not a list such as 4(x2),1")
        counts += [int(match[1])] * int(match[2] or 1)
    if node >= len(counts):
        raise ConfigError(f"slurm environment: {name} is {text!r}, which has no node {node}")
    return counts[node]
