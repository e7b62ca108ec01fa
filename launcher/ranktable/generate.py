"""Generates the rank table of a cluster file: 1.2 if its hosts lie in super-pods (A3), else 1.0.

Every scalar is a JSON string (HCCL answers EI0017 to a number). Ranks must not interleave across servers. MindSpore
requires them in the dictionary order of server_id.
"""

from itertools import groupby
from typing import Any

from pydantic import ValidationError

from launcher.cluster.config import ClusterConfig
from launcher.cluster.hosts import Device, Host
from launcher.contract.config import ConfigError
from launcher.contract.config_errors import first_mistake
from launcher.ranktable.document import check_table, render
from launcher.ranktable.editing import Placement, Table, placements
from launcher.ranktable.rules_v1 import Target


def make_table(cluster: ClusterConfig) -> Table:
    """Make and check the table for `cluster` (accelerator ascend).

    It has `device_ip` where the cluster file gives it. On a single server or super-pod it may be absent.
    Raises ConfigError: when the table has errors.
    """
    servers: list[dict[str, Any]] = []
    pods: dict[str, list[dict[str, str]]] = {}
    rank = 0
    for host in cluster.ordered_hosts:
        devices = []
        for device in host.devices:
            entry = {"device_id": str(device.id), "rank_id": str(rank)}
            if device.ip is not None:
                entry["device_ip"] = device.ip
            if device.super_device_id is not None:
                entry["super_device_id"] = str(device.super_device_id)
            devices.append(entry)
            rank += 1
        servers.append({"server_id": host.address, "device": devices})
        if host.super_pod is not None:
            pods.setdefault(host.super_pod, []).append({"server_id": host.address})
    table: Table = {
        "version": "1.2" if pods else "1.0",
        "server_count": str(len(servers)),
        "server_list": servers,
        "status": "completed",
    }
    if pods:
        table["super_pod_list"] = [{"super_pod_id": pod, "server_list": members} for pod, members in pods.items()]
    errors = [each for each in check_table(table, target_of(cluster)) if each.severity == "error"]
    if errors:
        raise ConfigError("\n".join(f"the rank table of {cluster.name}: {each}" for each in errors[:10]))
    return table


def rank_table(cluster: ClusterConfig) -> str:
    """Render `make_table` as the JSON text of a file whose name ends in .json."""
    return render(make_table(cluster))


def hosts_of(table: Table) -> list[Host]:
    """Return the hosts of a cluster file with the devices of a sound table.

    Raises ConfigError: when the table (2.0) names no hosts, or a host does not fit into a cluster file.
    """
    if table.get("version") == "2.0":
        raise ConfigError("version: found '2.0' (it does not name hosts)")
    hosts = []
    for server, places in groupby(placements(table), key=lambda place: place.server):
        try:
            hosts.append(_host(server, list(places)))
        except ValidationError as error:
            reason = first_mistake(error).reason
            raise ConfigError(f"server {server!r}: cannot stand in a cluster file ({reason})") from None
    return hosts


def _host(server: str, places: list[Placement]) -> Host:
    devices = tuple(
        Device(
            id=place.device_id,
            ip=place.device_ip or None,
            super_device_id=int(place.super_device_id) if place.super_device_id else None,
        )
        for place in places
    )
    return Host(address=server, devices=devices, super_pod=places[0].super_pod or None)


def target_of(cluster: ClusterConfig) -> Target:
    """Return what the variables of `cluster` require of its table."""
    return Target(inter_hccs=cluster.inter_hccs)
