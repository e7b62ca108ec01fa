"""Lists the ways to start ranks (`launcher.kind`), the ways they find each other (`launcher.init`), and valid pairs.

kind   mpirun: mpirun starts every rank; MPICH's for one host only.
       msrun: MindSpore's msrun on every host; with several hosts mpirun starts it on each.
       srun: one step of a Slurm job holds all ranks. Slurm's PMIx or HCCL lets them meet; no host needs sshd.
       local: the launcher's own processes on one host, without MPI.
init   mpi: MPI itself; on cpu by mpi4py, on Ascend MindSpore's init() finds it.
       rank_table: Ascend, HCCL reads the table in the run directory.
       dynamic_cluster: MindSpore's scheduler, beside rank 0; HCCL on Ascend, MCCL on cpu.
"""

from collections.abc import Iterator
from typing import Literal

Kind = Literal["mpirun", "msrun", "srun", "local"]
Init = Literal["mpi", "rank_table", "dynamic_cluster"]
Binding = Literal["none", "core", "numa"]

# (accelerator, kind) -> the ways that work, first the one for `init: null`.
INITS: dict[tuple[str, Kind], tuple[Init, ...]] = {
    ("cpu", "mpirun"): ("mpi", "dynamic_cluster"),
    ("cpu", "msrun"): ("dynamic_cluster",),
    ("cpu", "srun"): ("mpi",),
    ("cpu", "local"): ("dynamic_cluster",),
    ("ascend", "mpirun"): ("rank_table", "mpi", "dynamic_cluster"),
    ("ascend", "msrun"): ("dynamic_cluster",),
    ("ascend", "srun"): ("rank_table", "mpi", "dynamic_cluster"),
    ("ascend", "local"): ("rank_table", "dynamic_cluster"),
}


def faults(
    accelerator: str, kind: Kind, init: Init | None, binding: Binding, ranks_on_hosts: tuple[int, ...], arguments: bool
) -> Iterator[str]:
    """Yield a line for each conflict of settings.

    arguments: the file has extra arguments for mpirun
    """
    known = INITS[accelerator, kind]
    if init is not None and init not in known:
        yield f"launcher.init: found {init!r} (with kind {kind} on {accelerator}: {' or '.join(known)})"
    several = len(ranks_on_hosts) > 1
    if kind == "local" and several:
        yield f"launcher.kind: found 'local' for {len(ranks_on_hosts)} hosts (it starts ranks on one; take mpirun)"
    if kind == "local" and binding == "numa":
        yield "launcher.binding: found 'numa' (kind local knows none and core)"
    if kind == "msrun" and len(set(ranks_on_hosts)) > 1:
        yield "launcher.kind: found 'msrun' (it wants the same number of ranks on each host; take mpirun)"
    if arguments and kind == "srun":
        yield "launcher.mpirun_arguments: remove them (kind srun starts no mpirun)"
    if arguments and (kind == "local" or (kind == "msrun" and not several)):
        yield f"launcher.mpirun_arguments: remove them (kind {kind} on one host starts no mpirun)"
