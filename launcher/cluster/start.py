"""Defines the cluster file's sections on how ranks are started, find each other and are reached."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from launcher.cluster.backends import Binding, Init, Kind
from launcher.contract.config import Seconds, Section

Port = Annotated[int, Field(ge=1, le=65535)]


class LauncherSettings(Section):
    """How ranks are started and stopped. `launcher/cluster/backends.py` lists what goes together."""

    kind: Kind = "mpirun"
    """Starter of the ranks: mpirun, MindSpore's msrun on every host, srun inside a Slurm job, or the launcher itself on
    one host ("local")."""

    init: Init | None = None
    """How ranks find each other. null takes the first that fits accelerator and `kind`.
    "mpi" is MPI itself, "rank_table" an HCCL table, "dynamic_cluster" MindSpore's scheduler beside rank 0."""

    mpirun: Path | None = None
    """Absolute path of mpirun: Open MPI 4 or 5, or MPICH on one host. Every host uses the same path.
    null takes the one beside python, else the first on PATH."""

    mpirun_arguments: tuple[str, ...] = ()
    """Extra arguments of mpirun, passed on unchanged after the launcher's own."""

    binding: Binding = "none"
    """Bind each rank to a core, to a NUMA node, or to nothing.
    The default is "none", since Open MPI may bind two ranks to the same core. `kind` srun then leaves it to Slurm."""

    oversubscribe: bool | None = None
    """Let Open MPI start more ranks than a host has cores. null allows it on cpu and not on ascend."""

    rank_table: Path | None = None
    """HCCL rank table that a controller wrote, or its directory. It must agree with the cluster file.
    null makes a table from the cluster file. Only `init` rank_table reads one."""

    allow_run_as_root: bool = False
    """Allow a launch by root, which Open MPI refuses by default. Containers often have no other user."""

    stop_grace_s: Seconds = 60.0
    """Seconds from a request to stop until SIGTERM: time for the running step and a checkpoint.
    SIGKILL follows 5 s later. The Ascend examples take 300."""

    lease_s: Annotated[float, Field(ge=2, le=1e8)] = 120.0
    """Ranks end themselves after this many seconds in which the launcher has not renewed its lease.
    This clears hosts that are cut off. The launcher renews it 8 times in this span."""

    forward_variables: tuple[str, ...] = ()
    """Environment variables that mpirun passes on from this host. Only these and `environment` reach other hosts.
    Each must be set; ssh does not read ~/.bashrc."""

    @field_validator("mpirun")
    @classmethod
    def _check_mpirun_is_absolute(cls, mpirun: Path | None) -> Path | None:
        if mpirun is not None and not mpirun.is_absolute():
            raise ValueError("must be an absolute path, since it is used on every host")
        return mpirun


class Network(Section):
    """How ranks reach each other, and how long they wait."""

    interface: str | None = None
    """Network interface (such as eth0) or CIDR that Open MPI uses between hosts. null lets Open MPI choose."""

    scheduler_port: Annotated[int, Field(ge=1024, le=65535)] = 8118
    """TCP port on the first host where the ranks of a dynamic_cluster meet. 8118 is msrun's default."""

    join_timeout_s: Seconds = 600.0
    """Seconds within which all ranks of a dynamic_cluster must meet, and all pods of a job on Kubernetes answer.
    600 is msrun's default."""

    collective_timeout_s: Seconds = 1800.0
    """Seconds after which a rank ends with an error when its peers do not answer a collective.
    It covers what ranks do unequally fast: one may compile, load or write longer than another."""


class MetricsTls(Section):
    """Files of TLS, in PEM, at the same place on each host."""

    certificate: Path
    """Certificate of the ranks' hosts, with those that sign it."""

    key: Path
    """Private key of the certificate, without a password."""

    client_ca: Path | None = None
    """Certificates that sign those of clients. null lets clients connect without one."""


class Metrics(Section):
    """Addresses of the ranks' Prometheus metrics."""

    address: str = "127.0.0.1"
    """Address that each rank listens on. Several hosts need 0.0.0.0 or ::.
    The default is not reachable from outside, since anybody may read what is served."""

    base_port: Port = 9400
    """TCP port of a host's first rank. Its other ranks take the next ports. NVIDIA's dcgm-exporter uses 9400, too."""

    port_span: Annotated[int, Field(ge=1, le=1000)] = 16
    """Number of ports that a rank tries when another program has its own. The next one is as far away as the host has
    ranks. A rank that finds none trains without metrics."""

    linger_s: Annotated[float, Field(ge=0, le=600)] = 0.0
    """Seconds for which a rank waits at its end for one more scrape, which fetches the last values.
    0 does not wait. More than the scrape interval is enough."""

    tls: MetricsTls | None = None
    """Certificate with which ranks serve metrics over HTTPS. null serves HTTP."""

    users_file: Path | None = None
    """File of those who may scrape, on each host; `python -m monitoring.users NAME` makes its lines.
    null lets everybody scrape who reaches the port."""

    run_name: Annotated[str, Field(max_length=200, pattern=r"^[\w][\w.+ -]*$")] | None = None
    """Value of the label `run` of all metrics. null takes the name of the run directory.
    Runs that are watched together need different names."""

    targets_folder: Path | None = None
    """Folder where a run lists its ranks for Prometheus' file_sd, in CLUSTER-RUN.json, as long as it runs.
    null lists them in RUN/targets.json alone, whose path no pattern of Prometheus covers for many runs."""

    grafana_url: Annotated[str, Field(pattern=r"^https?://[^\s<>\"]+$")] | None = None
    """Address of Grafana, such as http://127.0.0.1:3000. The live page then links to the run's dashboard."""

    @field_validator("targets_folder")
    @classmethod
    def _check_targets_folder_is_absolute(cls, folder: Path | None) -> Path | None:
        if folder is not None and not folder.is_absolute():
            raise ValueError("must be an absolute path, since a job may run in another directory")
        return folder


class PreflightSettings(Section):
    """Demands of `vpred-launch check`, which each run repeats before it starts anything."""

    min_free_disk_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    """Free bytes that the run directory's disk must have, as each host sees it. The default is 1 GiB."""

    mpi_timeout_s: Seconds = 60.0
    """Seconds within which a trial of MPI must end: ranks on all hosts start and reach each other."""
