"""Builds the argv that starts all ranks, by kind of launcher: mpirun, msrun, srun, or launcher.rank.node here."""

from collections.abc import Callable
from pathlib import Path

from launcher.cluster.config import ClusterConfig
from launcher.cluster.hosts import Host
from launcher.contract.run_dir import RunDir
from launcher.planning.mpirun import Mpirun, MpirunError
from launcher.processes.ssh import SSH_OPTIONS
from launcher.processes.tied import own_program

HOSTFILE = "hostfile"


def start_argv(
    cluster: ClusterConfig, mpirun: Mpirun | None, python: Path, run: RunDir, attempt: int, trainer: tuple[str, ...]
) -> tuple[str, ...]:
    """Build the argv that starts all ranks.

    mpirun: None where the cluster needs none

    Raises MpirunError: when this mpirun cannot start the cluster.
    """
    argv = (*_shim(cluster, mpirun, python, run, attempt), *trainer)
    processes = cluster.world_size
    if cluster.launcher.kind == "srun":
        return (*srun_argv(cluster, processes, run.root), *argv)
    if cluster.launcher.kind != "mpirun":
        argv = (*_node(cluster, python, run, attempt), *argv)
        processes = len(cluster.hosts)
    return argv if mpirun is None else (*mpirun_argv(cluster, mpirun, processes, run.root), *argv)


def srun_argv(cluster: ClusterConfig, processes: int, ranks_in: Path | None) -> tuple[str, ...]:
    """Build srun and its options, all but the program. One step holds all processes, so that each signal reaches all.

    ranks_in: folder in which ranks start, None for one that every host has

    SLURM_HOSTFILE (srun_variables) names the host of each process. Slurm would order a list of nodes itself.
    """
    bound = {"none": (), "core": ("--cpu-bind=cores",), "numa": ("--cpu-bind=ldoms",)}[cluster.launcher.binding]
    argv = ["srun", "--overlap", f"--mpi={'pmix' if cluster.init == 'mpi' else 'none'}", "--kill-on-bad-exit=1"]
    argv += ["--export=ALL", f"--ntasks={processes}", "--distribution=arbitrary", *bound]
    return (*argv, f"--chdir={ranks_in or '/'}", "--")


def srun_variables(cluster: ClusterConfig, hostfile: Path) -> dict[str, str]:
    """Return the variables that srun and its processes need."""
    variables = {"SLURM_HOSTFILE": str(hostfile)}
    if cluster.init == "mpi":
        variables |= {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm,tcp"}
        if cluster.network.interface is not None:
            variables["OMPI_MCA_btl_tcp_if_include"] = cluster.network.interface
    return variables


def hostfile_lines(cluster: ClusterConfig, processes_on: Callable[[Host], int]) -> str:
    """Render the hosts for the starter: a line for each host, and for srun a line for each process."""
    if cluster.launcher.kind == "srun":
        return "".join(f"{host.address}\n" * processes_on(host) for host in cluster.ordered_hosts)
    return "".join(f"{host.address} slots={processes_on(host)}\n" for host in cluster.ordered_hosts)


def slots(cluster: ClusterConfig, host: Host) -> int:
    """Return how many processes mpirun starts on `host`: its ranks, or the one that runs msrun."""
    return 1 if cluster.launcher.kind == "msrun" else cluster.ranks_on(host)


def mpirun_argv(cluster: ClusterConfig, mpirun: Mpirun, processes: int, ranks_in: Path | None) -> tuple[str, ...]:
    """Build mpirun and its options, all but the program. It must start in a folder with a HOSTFILE.

    ranks_in: folder in which ranks start, None for mpirun's

    Raises MpirunError: when this mpirun cannot start the cluster.
    """
    if mpirun.is_mpich:
        return _mpich(cluster, mpirun, processes, ranks_in)
    settings, dialect = cluster.launcher, mpirun.dialect
    one_host = len(cluster.hosts) == 1
    transports = f"self,{dialect.shared_memory}" if one_host else f"self,{dialect.shared_memory},tcp"
    argv = [str(mpirun.path), "--hostfile", HOSTFILE, "-np", str(processes)]
    argv += ["--wdir", str(ranks_in)] if ranks_in else []
    # Map by slot: rank r gets the r-th slot of the hostfile, whatever the default mapping of this version is.
    oversubscribe = cluster.accelerator == "cpu" if settings.oversubscribe is None else settings.oversubscribe
    argv += dialect.oversubscribe if oversubscribe else ("--map-by", "slot")
    # Unbound by default: with two ranks Open MPI may pin both to the same core. msrun binds its ranks itself.
    argv += ["--bind-to", settings.binding if settings.kind == "mpirun" else "none"]
    argv += ["--mca", "pml", "ob1", "--mca", "btl", transports]
    if not one_host:
        argv += [*dialect.ssh_arguments, " ".join(SSH_OPTIONS)]
    if cluster.network.interface is not None:
        argv += ["--mca", "btl_tcp_if_include", cluster.network.interface]
    for name in (*settings.forward_variables, *cluster.environment):
        argv += ["-x", name]
    return (*argv, *settings.mpirun_arguments)


def _mpich(cluster: ClusterConfig, mpirun: Mpirun, processes: int, ranks_in: Path | None) -> tuple[str, ...]:
    if len(cluster.hosts) > 1:
        raise MpirunError(
            f"{mpirun.path} is MPICH's, which hangs when a host is lost (several hosts need Open MPI)",
            "name another one: launcher.mpirun",
        )
    binding = () if cluster.launcher.binding == "none" else ("-bind-to", cluster.launcher.binding)
    folder = ("-wdir", str(ranks_in)) if ranks_in else ()
    return (str(mpirun.path), "-np", str(processes), *folder, *binding, *cluster.launcher.mpirun_arguments)


def _node(cluster: ClusterConfig, python: Path, run: RunDir, attempt: int) -> tuple[str, ...]:
    argv = [*own_program(python, "launcher.rank.node"), "--kind", cluster.launcher.kind]
    argv += ["--run-dir", str(run.root), "--attempt", str(attempt)]
    argv += ["--world-size", str(cluster.world_size), "--local-size", str(cluster.ranks_on(cluster.hosts[0]))]
    argv += ["--binding", cluster.launcher.binding]
    return (*argv, *_scheduler(cluster), "--")


def _shim(cluster: ClusterConfig, mpirun: Mpirun | None, python: Path, run: RunDir, attempt: int) -> tuple[str, ...]:
    started_by = {
        "msrun": "msrun",
        "srun": "slurm",
        "local": "vpred",
        "mpirun": "mpich" if mpirun and mpirun.is_mpich else "openmpi",
    }
    argv = [*own_program(python, "launcher.rank.shim"), "--run-dir", str(run.root), "--attempt", str(attempt)]
    argv += ["--lease-s", f"{cluster.launcher.lease_s:g}"]
    argv += ["--by", started_by[cluster.launcher.kind], "--init", cluster.init]
    if cluster.init == "rank_table":
        devices = [str(device.id) for host in cluster.ordered_hosts for device in host.devices]
        argv += ["--rank-table", str(run.rank_table_json), "--device-ids", ",".join(devices)]
    return (*argv, *_scheduler(cluster), "--")


def _scheduler(cluster: ClusterConfig) -> tuple[str, ...]:
    if cluster.init != "dynamic_cluster":
        return ()
    network = cluster.network
    return (
        *("--scheduler-host", cluster.scheduler_host, "--scheduler-port", str(network.scheduler_port)),
        *("--join-timeout-s", f"{network.join_timeout_s:g}"),
    )
