"""ClusterConfig: where a training runs. Nothing about what is trained belongs here."""

import ipaddress
import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from launcher.cluster.backends import INITS, Binding, Init, Kind, faults
from launcher.cluster.hosts import LOCAL_ADDRESSES, Host
from launcher.cluster.supervision import SupervisionSettings
from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import Seconds, SecondsOrNone, Section, load_document
from launcher.contract.identity import tells_identity

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ANY_ADDRESS = {"0.0.0.0", "::"}  # noqa: S104  compared with, not bound to

Port = Annotated[int, Field(ge=1, le=65535)]


class LauncherSettings(Section):
    """How ranks are started (`kind`) and find each other (`init`): see backends.py; `init` null: the first that works.

    `mpirun` null: the one beside python, else the first on PATH. `mpirun_arguments` go to it as they are. `binding`:
    each rank to a core, a NUMA node, or none. `oversubscribe`: more ranks than cores; null: on cpu, not on Ascend.
    `rank_table`: with `init: rank_table`, one that a controller wrote (or its directory) to use as it is, once it has
    been checked against the cluster file; null makes one of that. `forward_variables` and those of `environment` are
    all that crosses to other hosts.
    """

    kind: Kind = "mpirun"
    init: Init | None = None
    mpirun: Path | None = None
    mpirun_arguments: tuple[str, ...] = ()
    binding: Binding = "none"
    oversubscribe: bool | None = None
    rank_table: Path | None = None
    allow_run_as_root: bool = False
    stop_grace_s: Seconds = 60.0
    lease_s: Annotated[float, Field(ge=2, le=1e8)] = 120.0
    forward_variables: tuple[str, ...] = ()

    @field_validator("mpirun")
    @classmethod
    def _is_absolute(cls, mpirun: Path | None) -> Path | None:
        if mpirun is not None and not mpirun.is_absolute():
            raise ValueError("must be an absolute path, since it is used on every host")
        return mpirun


class Network(Section):
    """`interface`: the NIC (or CIDR) for MPI between hosts; null lets MPI choose.

    `scheduler_port`: on the first host, where ranks of a dynamic cluster meet within `join_timeout_s`.
    A rank whose peers do not answer a collective within `collective_timeout_s` ends with an error. The time covers what
    ranks do not do alike: one may compile, load or write for longer than another.
    """

    interface: str | None = None
    scheduler_port: Annotated[int, Field(ge=1024, le=65535)] = 8118
    join_timeout_s: Seconds = 600.0
    collective_timeout_s: Seconds = 1800.0


class Metrics(Section):
    """Each rank serves its metrics on `address`, port `base_port` + local rank."""

    address: str = "127.0.0.1"
    base_port: Port = 9400


class PreflightSettings(Section):
    """What the preflight demands before anything is started.

    `mpi_timeout_s`: for its trial of MPI, in which ranks on all hosts start and reach each other.
    """

    min_free_disk_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    mpi_timeout_s: Seconds = 60.0


class RestartSettings(Section):
    """What follows a failed attempt; `max_restarts` 0: nothing, the run ends with its failure.

    The delay begins at `first_delay_s` and grows by `delay_factor` up to `max_delay_s` with each attempt in a row that
    commits no newer checkpoint; after `max_without_progress` of those the run ends. A host that ended
    `exclude_host_after` attempts (null: any number), or cannot be reached, gives its place to one of `spare_hosts`.
    With `shrink` and too few hosts left, those go on with fewer ranks, at least `min_ranks`, and the same global batch:
    each rank then has more samples, and needs the memory for them. Without, such a host is tried again.
    """

    max_restarts: Annotated[int, Field(ge=0)] = 0
    first_delay_s: SecondsOrNone = 10.0
    delay_factor: Annotated[float, Field(ge=1, le=10)] = 2.0
    max_delay_s: SecondsOrNone = 300.0
    max_without_progress: Annotated[int, Field(ge=1)] = 3
    exclude_host_after: Annotated[int, Field(ge=1)] | None = 2
    spare_hosts: tuple[Host, ...] = ()
    shrink: bool = False
    min_ranks: Annotated[int, Field(ge=1)] = 1


class ClusterConfig(Section):
    """A cluster file. Ranks go over hosts in the string order of their addresses, then over devices."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    accelerator: Literal["cpu", "ascend"]
    hosts: Annotated[tuple[Host, ...], Field(min_length=1)]
    workers_per_host: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    launcher: LauncherSettings = LauncherSettings()
    network: Network = Network()
    metrics: Metrics = Metrics()
    preflight: PreflightSettings = PreflightSettings()
    restart: RestartSettings = RestartSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    environment: Annotated[dict[str, str], Field(default_factory=dict)]

    @property
    def ordered_hosts(self) -> tuple[Host, ...]:
        """Hosts in rank order, devices by id. MindSpore wants ranks in the dictionary order of server_id."""
        hosts = sorted(self.hosts, key=lambda host: host.address)
        return tuple(
            host.model_copy(update={"devices": tuple(sorted(host.devices, key=lambda device: device.id))})
            for host in hosts
        )

    @property
    def known_hosts(self) -> tuple[Host, ...]:
        """Those that ranks start on and the spare ones."""
        return (*self.hosts, *self.restart.spare_hosts)

    @property
    def world_size(self) -> int:
        return sum(self.ranks_on(host) for host in self.hosts)

    @property
    def inter_hccs(self) -> bool:
        """Do devices of a super-pod talk over HCCS between servers? Else they need their own NICs."""
        return self.environment.get("HCCL_INTER_HCCS_DISABLE", "FALSE").upper() != "TRUE"

    @property
    def needs_device_ips(self) -> bool:
        pods = {host.super_pod for host in self.hosts}
        one_pod = len(pods) == 1 and None not in pods
        return len(self.hosts) > 1 and not (one_pod and self.inter_hccs)

    @property
    def highest_metrics_port(self) -> int:
        return self.metrics.base_port + max(self.ranks_on(host) for host in self.known_hosts) - 1

    @property
    def init(self) -> Init:
        """How ranks find each other."""
        return self.launcher.init or INITS[self.accelerator, self.launcher.kind][0]

    @property
    def needs_mpirun(self) -> bool:
        return self.launcher.kind == "mpirun" or (self.launcher.kind == "msrun" and len(self.hosts) > 1)

    @property
    def scheduler_host(self) -> str:
        """The address of rank 0's host, as its peers know it."""
        first = self.ordered_hosts[0].address
        return "127.0.0.1" if first in LOCAL_ADDRESSES else first

    def ranks_on(self, host: Host) -> int:
        return len(host.devices) or self.workers_per_host or 0

    def metrics_host(self, host: Host) -> str:
        """The name under which Prometheus reaches the metrics of `host`."""
        return host.address if self.metrics.address in _ANY_ADDRESS else self.metrics.address

    @field_validator("environment")
    @classmethod
    def _are_variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        return environment

    @model_validator(mode="after")
    def _workers_are_told_once(self) -> Self:
        if self.accelerator == "cpu":
            if self.workers_per_host is None:
                raise ValueError("workers_per_host: found nothing (accelerator cpu needs it)")
            if any(host.devices for host in self.known_hosts):
                raise ValueError("hosts: found devices (accelerator cpu has none; workers_per_host counts)")
        else:
            if self.workers_per_host is not None:
                raise ValueError("workers_per_host: remove it (one rank per device on accelerator ascend)")
            bare = [host.address for host in self.known_hosts if not host.devices]
            if bare:
                raise ValueError(
                    f"hosts: {', '.join(bare)} without devices (list id and ip of each; "
                    "`vpred-launch ranktable generate --discover --to hosts` finds them)"
                )
        return self

    @model_validator(mode="after")
    def _hosts_differ(self) -> Self:
        addresses = Counter(host.address for host in self.known_hosts)
        ips = Counter(device.ip for host in self.known_hosts for device in host.devices if device.ip is not None)
        for what, counts in (("address", addresses), ("device ip", ips)):
            for each, count in sorted(counts.items()):
                if count > 1:
                    raise ValueError(f"hosts: the {what} {each} is given {count} times")
        if len({ipaddress.ip_address(ip).version for ip in ips}) > 1:
            raise ValueError("hosts: the device ips mix IPv4 and IPv6 (HCCL wants one family for all ranks)")
        return self

    @model_validator(mode="after")
    def _hosts_reach_each_other(self) -> Self:
        if len(self.known_hosts) == 1:
            return self
        local = [host.address for host in self.known_hosts if host.address in LOCAL_ADDRESSES]
        if local:
            raise ValueError(f"hosts: {local[0]} among several hosts (give the address the others know)")
        missing = [f"{host.address} device {d.id}" for host in self.known_hosts for d in host.devices if d.ip is None]
        if missing and self.needs_device_ips:
            raise ValueError(f"hosts: {missing[0]} has no ip ({len(missing)} missing; several hosts need them)")
        if self.metrics.address not in _ANY_ADDRESS:
            raise ValueError(
                f"metrics.address: found {self.metrics.address!r} (ranks on several hosts need 0.0.0.0 or ::)"
            )
        return self

    @model_validator(mode="after")
    def _shrinks_no_further_than_it_is(self) -> Self:
        if self.restart.min_ranks > self.world_size:
            raise ValueError(f"restart.min_ranks: found {self.restart.min_ranks} (there are {self.world_size} ranks)")
        return self

    @model_validator(mode="after")
    def _backend_fits(self) -> Self:
        chosen = self.launcher
        counts = tuple(self.ranks_on(host) for host in self.hosts)
        found = faults(
            self.accelerator, chosen.kind, chosen.init, chosen.binding, counts, bool(chosen.mpirun_arguments)
        )
        if fault := next(found, None):
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _super_pods_stay_together(self) -> Self:
        pods = [host.super_pod for host in self.ordered_hosts]
        bare = [host.address for host in self.hosts if host.super_pod is None]
        if bare and len(bare) < len(self.hosts):
            raise ValueError(f"hosts: {bare[0]} has no super_pod, but others have (A3: all hosts or none)")
        if len([pod for pod, _ in groupby(pods)]) > len(set(pods)):
            raise ValueError(
                "hosts: the super pods lie among each other in the text order of addresses, which ranks follow "
                "(name the hosts so that those of a pod come together)"
            )
        return self

    @model_validator(mode="after")
    def _rank_table_is_for_ascend(self) -> Self:
        if self.launcher.rank_table is not None and self.accelerator != "ascend":
            raise ValueError("launcher.rank_table: remove it (rank tables list Ascend devices)")
        if self.launcher.rank_table is not None and self.init != "rank_table":
            raise ValueError(f"launcher.rank_table: remove it (init {self.init} reads none)")
        return self

    @model_validator(mode="after")
    def _ports_fit(self) -> Self:
        if self.highest_metrics_port > 65535:
            raise ValueError(
                f"metrics.base_port: found {self.metrics.base_port} (the last rank would need port "
                f"{self.highest_metrics_port}; 65535 is the highest)"
            )
        return self

    @model_validator(mode="after")
    def _variables_are_free(self) -> Self:
        taken = sorted(set(ACCELERATORS[self.accelerator].process_variables) & set(self.environment))
        if taken:
            raise ValueError(f"environment: {taken[0]} is set by the accelerator {self.accelerator}; remove it")
        for key, names in (
            ("environment", self.environment),
            ("launcher.forward_variables", self.launcher.forward_variables),
        ):
            if told := sorted(filter(tells_identity, names)):
                raise ValueError(
                    f"{key}: {told[0]} tells ranks who they are, which is the launcher's to say; remove it"
                )
        return self


def load_cluster(path: Path, overrides: Sequence[str] = ()) -> ClusterConfig:
    """The cluster file with `overrides` (without the prefix "cluster."); raises ConfigError."""
    return load_document(ClusterConfig, path, overrides)
