"""Defines ClusterConfig: hosts, devices and launcher settings. The training setup is in the recipe."""

import ipaddress
import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from launcher.cluster.backends import INITS, Init, faults
from launcher.cluster.hosts import LOCAL_ADDRESSES, Device, Host
from launcher.cluster.operations import OperationSettings
from launcher.cluster.restart import RestartSettings
from launcher.cluster.slurm import slurm_faults
from launcher.cluster.start import LauncherSettings, Metrics, Network, PreflightSettings
from launcher.cluster.submit import SubmitConfig
from launcher.cluster.supervision import SupervisionSettings
from launcher.contract.accelerators import ACCELERATORS, Engine, accelerator_with
from launcher.contract.config import ConfigError, Section, load_document
from launcher.contract.config_errors import first_mistake
from launcher.contract.identity import sets_identity

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MADE_UP_IP = ipaddress.IPv4Address("10.0.0.0")
ANY_ADDRESS = {"0.0.0.0", "::"}  # noqa: S104  compared with, not bound to


class ClusterConfig(Section):
    """A cluster file. Ranks go over hosts in the string order of their addresses, then over devices."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    """Name of the cluster, used in messages."""

    accelerator: Literal["cpu", "ascend"]
    """Kind of device that ranks compute on."""

    engine: Literal["auto", Engine] = "auto"
    """Where gradients are reduced and weights updated: on the host, or within the graph on the device.
    "auto": host on cpu, device on ascend. "host" on ascend is many times slower, and meant for debugging."""

    operations: OperationSettings = OperationSettings()
    """How the device computes the networks."""

    hosts: tuple[Host, ...] = ()
    """Machines that ranks start on. A file with `submit` leaves them out, since its jobs get nodes of the scheduler."""

    workers_per_host: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    """Number of ranks on each host, for accelerator cpu. On ascend each device has one rank."""

    devices_per_host: Annotated[int, Field(ge=1, le=1 << 8)] | None = None
    """Number of NPUs of each node, one rank each, for accelerator ascend with `submit`."""

    launcher: LauncherSettings = LauncherSettings()
    """How ranks are started and stopped."""

    network: Network = Network()
    """Network interface, ports and timeouts of the ranks."""

    metrics: Metrics | None = Metrics()
    """Address and ports of the Prometheus metrics. null serves none."""

    preflight: PreflightSettings = PreflightSettings()
    """Conditions that are checked before anything is started."""

    restart: RestartSettings = RestartSettings()
    """Restarts after a failed attempt."""

    supervision: SupervisionSettings = SupervisionSettings()
    """Limits for hung and for slow ranks."""

    submit: SubmitConfig | None = None
    """Scheduler that gives the run its hosts, for `vpred-launch submit`. null runs on `hosts`."""

    environment: Annotated[dict[str, str], Field(default_factory=dict)]
    """Environment variables of all ranks on all hosts, by name. The launcher's own variables are refused."""

    @property
    def ordered_hosts(self) -> tuple[Host, ...]:
        """Return hosts in rank order, devices by id. MindSpore requires ranks in the string order of server_id."""
        hosts = sorted(self.hosts, key=lambda host: host.address)
        return tuple(
            host.model_copy(update={"devices": tuple(sorted(host.devices, key=lambda device: device.id))})
            for host in hosts
        )

    @property
    def known_hosts(self) -> tuple[Host, ...]:
        """Return the hosts that ranks start on, then the spare hosts."""
        return (*self.hosts, *self.restart.spare_hosts)

    @property
    def ranks_per_node(self) -> int:
        """Return the number of ranks on each node of a file with `submit`."""
        return self.devices_per_host or self.workers_per_host or 0

    @property
    def world_size(self) -> int:
        if self.submit is not None:
            return self.submit.nodes * self.ranks_per_node
        return sum(self.ranks_on(host) for host in self.hosts)

    @property
    def inter_hccs(self) -> bool:
        """Return whether the devices of a super-pod use HCCS between servers. If not, they need their own NICs."""
        return self.environment.get("HCCL_INTER_HCCS_DISABLE", "FALSE").upper() != "TRUE"

    @property
    def needs_device_ips(self) -> bool:
        pods = {host.super_pod for host in self.hosts}
        one_pod = len(pods) == 1 and None not in pods
        return len(self.hosts) > 1 and not (one_pod and self.inter_hccs)

    @property
    def metrics_ports(self) -> range:
        """Return the metrics ports that the ranks of the fullest host take, when all are free; none without metrics."""
        if self.metrics is None:
            return range(0)
        ranks = max((self.ranks_on(host) for host in self.known_hosts), default=self.ranks_per_node)
        return range(self.metrics.base_port, self.metrics.base_port + ranks)

    @property
    def init(self) -> Init:
        """Return the way in which ranks find each other."""
        return self.launcher.init or INITS[self.accelerator, self.launcher.kind][0]

    @property
    def chosen_engine(self) -> Engine:
        """Return the engine without "auto"."""
        return ACCELERATORS[self.accelerator].engine if self.engine == "auto" else self.engine

    @property
    def device_options(self) -> list[str]:
        """Return the trainer's options on where and how it computes."""
        options = ["--accelerator", self.accelerator, "--engine", self.chosen_engine]
        return [*options, *self.operations.trainer_options]

    @property
    def needs_mpirun(self) -> bool:
        return self.launcher.kind == "mpirun" or (self.launcher.kind == "msrun" and len(self.hosts) > 1)

    @property
    def scheduler_host(self) -> str:
        """Return the address of rank 0's host, as its peers know it."""
        first = self.ordered_hosts[0].address
        return "127.0.0.1" if first in LOCAL_ADDRESSES else first

    def on(self, hosts: Sequence[Host], spare_hosts: Sequence[Host] = ()) -> Self:
        """Return a file with `submit` as one that runs on `hosts`, the nodes of its job.

        Raises ValidationError: when these hosts do not fit the other settings.
        """
        restart = self.restart.model_copy(update={"spare_hosts": tuple(spare_hosts)})
        placed = {"hosts": tuple(hosts), "restart": restart, "submit": None, "devices_per_host": None}
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **placed})

    def ranks_on(self, host: Host) -> int:
        return len(host.devices) or self.workers_per_host or 0

    @field_validator("environment")
    @classmethod
    def _check_names_of_variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is not a name of an environment variable")
        return environment

    @model_validator(mode="after")
    def _check_hosts_are_given_once(self) -> Self:
        if self.submit is None:
            if not self.hosts:
                raise ValueError("hosts: found [] (list at least one, or give the file a section submit)")
            if self.devices_per_host is not None:
                raise ValueError("devices_per_host: remove it (only files with a section submit have it; list devices)")
            return self
        for key, hosts in (("hosts", self.hosts), ("restart.spare_hosts", self.restart.spare_hosts)):
            if hosts:
                raise ValueError(f"{key}: remove it (with the section submit the job's allocation declares the hosts)")
        if self.accelerator == "ascend" and self.devices_per_host is None:
            raise ValueError("devices_per_host: found nothing (accelerator ascend with submit needs it)")
        if self.accelerator == "cpu" and self.devices_per_host is not None:
            raise ValueError("devices_per_host: remove it (accelerator cpu has no devices; workers_per_host counts)")
        return self

    @model_validator(mode="after")
    def _check_ranks_are_given_once(self) -> Self:
        if self.accelerator == "cpu":
            if self.workers_per_host is None:
                raise ValueError(
                    "workers_per_host: found nothing (accelerator cpu needs it; give the ranks of each host)"
                )
            if any(host.devices for host in self.known_hosts):
                raise ValueError(
                    "hosts: found devices (accelerator cpu has none; remove them and set workers_per_host)"
                )
        else:
            if self.workers_per_host is not None:
                raise ValueError(
                    f"workers_per_host: found {self.workers_per_host} (accelerator {self.accelerator} starts one rank "
                    "per device; remove it)"
                )
            bare = [host.address for host in self.known_hosts if not host.devices]
            if bare:
                raise ValueError(
                    f"hosts: {', '.join(bare)} lists no devices (list id and ip of each; "
                    "`vpred-launch ranktable generate --discover --to hosts` finds them)"
                )
        return self

    @model_validator(mode="after")
    def _check_hosts_differ(self) -> Self:
        addresses = Counter(host.address for host in self.known_hosts)
        ips = Counter(device.ip for host in self.known_hosts for device in host.devices if device.ip is not None)
        for what, counts in (("address", addresses), ("device ip", ips)):
            for each, count in sorted(counts.items()):
                if count > 1:
                    raise ValueError(f"hosts: the {what} {each} is listed {count} times (list it once)")
        if len({ipaddress.ip_address(ip).version for ip in ips}) > 1:
            raise ValueError("hosts: the device ips mix IPv4 and IPv6 (HCCL needs one family for all ranks)")
        return self

    @model_validator(mode="after")
    def _check_hosts_reach_each_other(self) -> Self:
        if len(self.known_hosts) <= 1:
            return self
        local = [host.address for host in self.known_hosts if host.address in LOCAL_ADDRESSES]
        if local:
            raise ValueError(f"hosts: found {local[0]} among several hosts (give the address that the other hosts use)")
        missing = [f"{host.address} device {d.id}" for host in self.known_hosts for d in host.devices if d.ip is None]
        if missing and self.needs_device_ips:
            raise ValueError(
                f"hosts: {missing[0]} has no ip (several hosts need one for each device; {len(missing)} missing)"
            )
        if self.metrics is not None and self.metrics.address not in ANY_ADDRESS:
            raise ValueError(
                f"metrics.address: found {self.metrics.address!r} (ranks on several hosts need 0.0.0.0 or ::)"
            )
        return self

    @model_validator(mode="after")
    def _check_min_ranks(self) -> Self:
        if self.restart.min_ranks > self.world_size:
            raise ValueError(
                f"restart.min_ranks: found {self.restart.min_ranks} (the cluster has only {self.world_size} ranks)"
            )
        return self

    @model_validator(mode="after")
    def _check_backend_fits(self) -> Self:
        chosen = self.launcher
        counts = tuple(self.ranks_on(host) for host in self.hosts)
        found = faults(
            self.accelerator, chosen.kind, chosen.init, chosen.binding, counts, bool(chosen.mpirun_arguments)
        )
        if fault := next(found, None):
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _check_engine_has_its_collective(self) -> Self:
        if self.accelerator == "cpu" and self.chosen_engine == "device" and self.init == "mpi" and self.world_size > 1:
            raise ValueError(
                "engine: found 'device' with launcher.init mpi on cpu (MindSpore's own collective MCCL cannot start "
                "that way; set launcher.init=dynamic_cluster or launcher.kind=msrun)"
            )
        return self

    @model_validator(mode="after")
    def _check_device_has_the_operations(self) -> Self:
        try:
            accelerator_with(self.accelerator, operations=self.operations.names)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _check_super_pods_stay_together(self) -> Self:
        pods = [host.super_pod for host in self.ordered_hosts]
        bare = [host.address for host in self.hosts if host.super_pod is None]
        if bare and len(bare) < len(self.hosts):
            raise ValueError(f"hosts: {bare[0]} has no super_pod, but others have (give it on all hosts or on none)")
        if len([pod for pod, _ in groupby(pods)]) > len(set(pods)):
            raise ValueError(
                "hosts: in the text order of addresses, which ranks follow, the hosts of a super pod are not adjacent "
                "(rename the hosts so that they are)"
            )
        return self

    @model_validator(mode="after")
    def _check_rank_table_is_read(self) -> Self:
        if self.launcher.rank_table is not None and self.accelerator != "ascend":
            raise ValueError(
                f"launcher.rank_table: found {self.launcher.rank_table} (accelerator {self.accelerator} uses none; "
                "remove it)"
            )
        if self.launcher.rank_table is not None and self.init != "rank_table":
            raise ValueError(
                f"launcher.rank_table: found {self.launcher.rank_table} (init {self.init} reads none; remove it)"
            )
        return self

    @model_validator(mode="after")
    def _check_ports_fit(self) -> Self:
        if (ports := self.metrics_ports) and ports[-1] > 65535:
            raise ValueError(
                f"metrics.base_port: found {ports[0]} (the last rank would need port {ports[-1]}; 65535 is the highest)"
            )
        return self

    @model_validator(mode="after")
    def _check_variables_are_free(self) -> Self:
        taken = sorted(set(ACCELERATORS[self.accelerator].process_variables) & set(self.environment))
        if taken:
            raise ValueError(f"environment: {taken[0]} is set by the accelerator {self.accelerator}; remove it")
        for key, names in (
            ("environment", self.environment),
            ("launcher.forward_variables", self.launcher.forward_variables),
        ):
            if identifying := sorted(filter(sets_identity, names)):
                raise ValueError(f"{key}: the launcher itself gives {identifying[0]} to each rank; remove it")
        return self

    @model_validator(mode="after")
    def _check_allocation_would_fit(self) -> Self:
        """Check a file with `submit` as it will run, on made-up hosts. Before the job nobody knows their names."""
        if self.submit is None:
            return self
        if self.submit.scheduler == "slurm":
            found = slurm_faults(self.submit.slurm, self.launcher.stop_grace_s, self.devices_per_host)
            if fault := next(found, None):
                raise ValueError(fault)
        count = self.submit.nodes + self.submit.spare_nodes
        hosts = [Host(address=f"node-{n}", devices=self._made_up_devices(n)) for n in range(count)]
        try:
            self.on(hosts[: self.submit.nodes], hosts[self.submit.nodes :])
        except ValidationError as error:
            raise ValueError(first_mistake(error).reason) from None
        return self

    def _made_up_devices(self, node: int) -> tuple[Device, ...]:
        count = self.devices_per_host or 0
        return tuple(Device(id=n, ip=str(_MADE_UP_IP + node * count + n)) for n in range(count))


def load_cluster(path: Path, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Load the cluster file with `overrides` (without the prefix "cluster."). Raises ConfigError: on any mistake."""
    return load_document(ClusterConfig, path, overrides)
