"""Finds the pods of a job: their addresses, their NPUs, and whether their sshd answers."""

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from launcher.cluster.config import ClusterConfig
from launcher.cluster.hosts import Host
from launcher.cluster.kubernetes import SSH_PORT, KubernetesConfig
from launcher.contract.config import ConfigError
from launcher.contract.config_errors import first_mistake
from launcher.processes.ssh import Remote
from launcher.ranktable.discovery import discover
from launcher.ranktable.document import check_table, find_file, read_table
from launcher.ranktable.generate import hosts_of

# mpi-operator writes it into the launcher's pod: a line "NAME slots=N" for each worker.
MPI_HOSTFILE = Path("/etc/mpi/hostfile")
_ANSWER_S = 2.0


def _of_indexed_job(name: str, count: int) -> list[str]:
    return [f"{name}-{index}.{name}" for index in range(count)]


def _of_volcano(name: str, count: int) -> list[str]:
    return [f"{name}-launcher-0.{name}", *(f"{name}-worker-{index}.{name}" for index in range(count - 1))]


def _of_mpi_operator(name: str, count: int) -> list[str]:
    try:
        lines = MPI_HOSTFILE.read_text().splitlines()
    except OSError as error:
        remedy = "is this the launcher of an MPIJob?"
        raise ConfigError(f"{MPI_HOSTFILE}: cannot be read ({error.strerror})", remedy) from None
    return [line.split()[0] for line in lines if line.strip()]


# Workload -> the DNS names of the pods with ranks, in their order. The pods of an AscendJob have none.
NAMES: dict[str, Callable[[str, int], list[str]]] = {
    "job": _of_indexed_job,
    "volcano": _of_volcano,
    "mpijob": _of_mpi_operator,
}


def pod_names(settings: KubernetesConfig, name: str, count: int) -> list[str]:
    """Return the addresses of the `count` pods of job `name` that ranks start in.

    Raises ConfigError: when the controller has not written them, or has written another number of them.
    """
    names = NAMES[settings.workload](name, count)
    if len(names) != count:
        raise ConfigError(f"{MPI_HOSTFILE}: found {len(names)} hosts (the cluster file asks for {count})")
    return names


def is_complete(table: Path) -> bool:
    """Return whether a controller has completed its rank table."""
    try:
        content, _ = read_table(find_file(table))
    except ConfigError:
        return False
    return content.get("status") == "completed"


def table_hosts(path: Path) -> list[Host]:
    """Return the pods in a controller's complete table, with their NPUs, by the addresses `container_ip`.

    Raises ConfigError: when the table has faults, or gives no address of a pod.
    """
    table, found = read_table(find_file(path))
    found = found or check_table(table)
    if errors := [each for each in found if each.severity == "error"]:
        raise ConfigError("\n".join(f"{path}: {each}" for each in errors[:10]))
    addresses = {server["server_id"]: server.get("container_ip") for server in table.get("server_list", ())}
    hosts = []
    for host in hosts_of(table):
        address = addresses.get(host.address)
        if not address:
            remedy = "remove submit.kubernetes.rank_table, so that the pods are asked for their NPUs"
            raise ConfigError(f"{path}: server {host.address!r} has no container_ip", remedy)
        hosts.append(host.model_copy(update={"address": address}))
    return hosts


def asked_hosts(cluster: ClusterConfig, addresses: Sequence[str], remote: Remote) -> list[Host]:
    """Return the pods at `addresses`. On Ascend they are asked for their NPUs.

    Raises ConfigError: when a pod does not answer.
    """
    if cluster.accelerator != "ascend":
        return [Host(address=address) for address in addresses]
    return discover(addresses, remote)


def placed(cluster: ClusterConfig, hosts: Sequence[Host], nodes: int) -> ClusterConfig:
    """Return a cluster file with `submit` as one on these pods. Those beyond the first `nodes` are spare hosts.

    Raises ConfigError: when there are too few pods, or they do not fit the other settings.
    """
    if len(hosts) < nodes:
        raise ConfigError(f"submit.nodes: found {nodes} (there are {len(hosts)} pods)")
    for host in hosts:
        if len(host.devices) != (cluster.devices_per_host or 0):
            found = f"{host.address} has {len(host.devices)} NPUs"
            raise ConfigError(f"devices_per_host: found {cluster.devices_per_host} ({found})")
    try:
        return cluster.on(hosts[:nodes], hosts[nodes:])
    except ValidationError as error:
        raise ConfigError(f"pods {', '.join(host.address for host in hosts)}: {first_mistake(error).reason}") from None


def silent(addresses: Sequence[str]) -> list[str]:
    """Return those of `addresses` where no sshd answers now."""
    return [address for address in addresses if not _answers(address)]


def _answers(address: str) -> bool:
    with suppress(OSError), socket.create_connection((address, SSH_PORT), timeout=_ANSWER_S) as connection:
        return connection.recv(4) == b"SSH-"
    return False
