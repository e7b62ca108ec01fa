"""Checks rank tables 1.0 and 1.2 by the rules of HCCL's parser and of CANN's and MindSpore's documentation.

1.0: Atlas training 910A, A2 (910B), 300I Duo, A3 (910C) in AI-server mode. 1.2: A3 super-pods. All scalars are text.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Literal, NamedTuple

from launcher.contract.config_errors import shown
from launcher.ranktable import table_findings as findings
from launcher.ranktable.table_findings import MIXED_FAMILIES, Finding, Key, check_object, entries

DEFAULT_DEVICE_PORT = "16666"
_RENUMBER = "number ranks 0, 1, 2 ... server by server: `vpred-launch ranktable merge` does it"
_ADDRESS = (
    "`hccn_tool -i DEVICE -ip -g` shows it; without one, set it: `hccn_tool -i DEVICE -ip -s address IP netmask MASK`"
)

TOP_KEYS = {
    "version": Key("version", str, "must be 1.0 or 1.2", "write it", findings.one_of("1.0", "1.2"), True),
    "status": Key(
        "status", str, "must be completed or initializing", "write completed when the table is complete",
        findings.one_of("completed", "initializing"), True,
    ),
    "server_count": Key("server-count", str, "must be a number above 0", "write the number of servers",
                        lambda text: findings.is_number(text, 1)),
    "server_list": Key("server-list", list, "must have at least one server", "list the servers", bool, True),
    "super_pod_list": Key("super-pod-list", list, "must have at least one super pod", "list the pods or remove it"),
}  # fmt: skip
SERVER_KEYS = {
    "server_id": Key("server-id", str, "must have 1 to 64 characters", "use the host's address or a short label",
                     findings.text_of(64), True),
    "host_ip": Key("host-ip", str, "must be an IPv4 or IPv6 address", "write the address of the host's NIC",
                   findings.is_address),
    "device": Key("device-list", list, "must have at least one device", "list its devices or remove the server",
                  bool, True),
    "net_position": Key("net-position", str, "must be host or device", "remove it", findings.one_of("host", "device")),
    "net_protocol": Key("net-protocol", str, "must be rdma or tcp", "remove it", findings.one_of("rdma", "tcp")),
}  # fmt: skip
_PORT = ("must be a port from 1 to 65535", "remove it for the default, or choose another", findings.is_port)
DEVICE_KEYS = {
    "device_id": Key("device-id", str, "must be the physical number of a device",
                     "take N of /dev/davinciN, whatever ASCEND_RT_VISIBLE_DEVICES says", findings.is_number, True),
    "rank_id": Key("rank-id", str, "must be a number from 0", _RENUMBER, findings.is_number, True),
    "device_ip": Key("device-ip", str, "must be an IPv4 or IPv6 address", _ADDRESS, findings.are_addresses),
    "device_port": Key("device-port", str, *_PORT),
    "device_vnic_port": Key("device-port", str, *_PORT),
    "host_port": Key("host-port", str, *_PORT),
    "super_device_id": Key("super-device-id", str, "must be the number of the device in its super pod",
                           "take SDID of `npu-smi info -t spod-info -i NPU -c CHIP`", findings.is_number),
    "backup_device_ip": Key("backup-device", str, "must be an IPv4 or IPv6 address",
                            "take the ip of the card's other die", findings.are_addresses),
    "backup_device_port": Key("backup-device", str, *_PORT),
}  # fmt: skip
POD_KEYS = {
    "super_pod_id": Key("super-pod-id", str, "must not be empty", "give the `Super Pod ID` of npu-smi, or a label",
                        bool, True),
    "server_list": Key("super-pod-servers", list, "must name at least one server", "name its servers or remove the pod",
                       bool, True),
}  # fmt: skip
MEMBER_KEYS = {"server_id": Key("super-pod-servers", str, "must not be empty", "name a server", bool, True)}

# Other tools write these keys; HCCL ignores them.
_IGNORED = frozenset(
    {"host_nic_ip", "container_ip", "hardware_type", "server_ip", "dpu_ip", "numa_id", "pod_ip", "cluster_list"}
)


@dataclass(frozen=True)
class Target:
    """Says what a table is for.

    inter_hccs: False for HCCL_INTER_HCCS_DISABLE=TRUE, with which super-pods need device ips
    """

    chip: Literal["910A"] | None = None
    inter_hccs: bool = True


DEFAULT_TARGET = Target()


class Place(NamedTuple):
    """Is one device of a table, with its server_id and its indices in the lists."""

    server_index: int
    device_index: int
    server: str
    device: dict[str, Any]

    @property
    def path(self) -> str:
        return f"server_list[{self.server_index}].device[{self.device_index}]"


def structure(table: dict[str, Any]) -> Iterator[Finding]:
    """Check keys, types and single values. The other rules need these to hold."""
    yield from check_object(table, "", TOP_KEYS, _IGNORED)
    for i, server in enumerate(entries(table, "server_list")):
        path = f"server_list[{i}]"
        yield from check_object(server, path, SERVER_KEYS, _IGNORED)
        for j, device in enumerate(entries(server, "device")):
            yield from check_object(device, f"{path}.device[{j}]", DEVICE_KEYS, _IGNORED)
    for i, pod in enumerate(entries(table, "super_pod_list")):
        path = f"super_pod_list[{i}]"
        yield from check_object(pod, path, POD_KEYS, _IGNORED)
        for j, member in enumerate(entries(pod, "server_list")):
            yield from check_object(member, f"{path}.server_list[{j}]", MEMBER_KEYS, _IGNORED)


def places(table: dict[str, Any]) -> list[Place]:
    """List all devices in the order of the table."""
    return [
        Place(i, j, server["server_id"], device)
        for i, server in enumerate(table["server_list"])
        for j, device in enumerate(server["device"])
    ]


def server_count(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    servers = len(table["server_list"])
    found = table.get("server_count")
    if found is None:
        yield Finding(
            "server_count", "nothing", "server-count", "documented as required", f'write "{servers}"', "", "warning"
        )
    elif int(found) != servers:
        yield Finding("server_count", shown(found), "server-count", f"server_list has {servers}", f'write "{servers}"')


def server_ids(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    ids = [server["server_id"] for server in table["server_list"]]
    for i in _repeated(ids):
        remedy = "list each server once, with all its devices: `vpred-launch ranktable merge` does it"
        yield Finding(f"server_list[{i}].server_id", shown(ids[i]), "server-id-unique", "named before", remedy)


def server_order(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    """Check MindSpore's order of ranks, the dictionary order of server_id: 10.0.0.10 comes before 10.0.0.9."""
    first_ranks = {
        server["server_id"]: min(int(device["rank_id"]) for device in server["device"])
        for server in table["server_list"]
    }
    by_rank = sorted(first_ranks, key=first_ranks.__getitem__)
    for before, after in pairwise(by_rank):
        if before > after:
            problem = (
                f"as text it comes before {before}, but its ranks come after; MindSpore needs the order of the text"
            )
            remedy = "use labels with leading zeros, or sort: `vpred-launch ranktable merge` does it"
            yield Finding("server_list", shown(after), "server-order", problem, remedy, "", "warning")


def ranks(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    found = places(table)
    ids = [int(place.device["rank_id"]) for place in found]
    for i in _repeated(ids):
        yield Finding(f"{found[i].path}.rank_id", shown(str(ids[i])), "rank-unique", "given before", _RENUMBER)
    if missing := sorted(set(range(len(ids))) - set(ids)):
        problem = f"{len(ids)} devices need ranks 0 to {len(ids) - 1}; {missing[0]} is missing"
        highest = max(range(len(ids)), key=ids.__getitem__)
        yield Finding(f"{found[highest].path}.rank_id", shown(str(ids[highest])), "rank-contiguous", problem, _RENUMBER)
    by_rank = [
        server for server, _ in groupby(place.server for _, place in sorted(zip(ids, found, strict=True), key=_first))
    ]
    for i in _repeated(by_rank):
        problem = "its ranks are not one behind the other: those of another server lie between"
        yield Finding("server_list", shown(by_rank[i]), "rank-interleaved", problem, _RENUMBER)


def device_ids(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    """Check that a device has one process, or that each of several processes has its own port."""
    found = places(table)
    keys = [
        (place.server, place.device["device_id"], place.device.get("device_port", DEFAULT_DEVICE_PORT))
        for place in found
    ]
    for i in _repeated(keys):
        remedy = "list each device once, or give each process that shares it a device_port"
        yield Finding(f"{found[i].path}.device_id", shown(keys[i][1]), "device-unique", "on this server before", remedy)


def device_ips(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    found = places(table)
    needed = _needs_ips(table, target)
    counts = Counter(len(_ips(place.device)) for place in found if not needed or "device_ip" in place.device)
    usual = counts.most_common(1)[0][0] if counts else 0
    for place in found:
        own = len(_ips(place.device))
        if needed and own == 0:
            problem = "these devices talk to each other over their own NICs"
            yield Finding(f"{place.path}.device_ip", "nothing", "device-ip-needed", problem, _ADDRESS)
        elif own != usual:
            problem, value = f"{own} addresses, where others have {usual}", shown(place.device.get("device_ip", ""))
            yield Finding(f"{place.path}.device_ip", value, "device-ip-count", problem, "give all devices as many")
    yield from _ip_family(found)
    yield from _ip_unique(found)


def _ip_family(found: list[Place]) -> Iterator[Finding]:
    addresses = [(place, ip) for place in found for ip in _ips(place.device)]
    if not addresses:
        return
    families = [findings.family(ip) for _, ip in addresses]
    usual = Counter(families).most_common(1)[0][0]
    for (place, ip), own in zip(addresses, families, strict=True):
        if own != usual:
            problem = f"IPv{own}, where others are IPv{usual}; all ranks must have one family"
            remedy = "give all devices addresses of one family"
            yield Finding(f"{place.path}.device_ip", shown(ip), "device-ip-family", problem, remedy, MIXED_FAMILIES)


def _ip_unique(found: list[Place]) -> Iterator[Finding]:
    owners: dict[str, tuple[str, str]] = {}
    for place in found:
        owner = (place.server, place.device["device_id"])
        for ip in _ips(place.device):
            if owners.setdefault(ip, owner) != owner:
                problem = f"also that of device {owners[ip][1]} of {owners[ip][0]}"
                yield Finding(f"{place.path}.device_ip", shown(ip), "device-ip-unique", problem, _ADDRESS)


def ports(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    found = places(table)
    keys = [(place.server, place.device.get("host_port", f"none {i}")) for i, place in enumerate(found)]
    for i in _repeated(keys):
        problem = "taken by another device of this server"
        remedy = "give each device of a server its own"
        yield Finding(f"{found[i].path}.host_port", shown(keys[i][1]), "host-port-unique", problem, remedy)
    for place in found:
        for name in ("device_port", "host_port", "backup_device_port"):
            if int(place.device.get(name, DEFAULT_DEVICE_PORT)) < 1024:
                value = shown(place.device[name])
                problem = "a port of the system"
                yield Finding(
                    f"{place.path}.{name}", value, "port-reserved", problem, "take one from 1024 on", "", "warning"
                )


def backups(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    """Check A3's backups: a die's backup is the other die of its card, at a port that the other die does not use."""
    found = places(table)
    owners = {(place.server, ip): place for place in found for ip in _ips(place.device)}
    for place in found:
        path = f"{place.path}.backup_device_ip"
        for ip in place.device.get("backup_device_ip", "").split(","):
            owner = owners.get((place.server, ip))
            if not ip or owner is None:
                continue
            if owner.device["device_id"] == place.device["device_id"]:
                remedy = "take the ip of the card's other die"
                yield Finding(path, shown(ip), "backup-other-die", "the device's own address", remedy)
            backup_port = place.device.get("backup_device_port", DEFAULT_DEVICE_PORT)
            if owner is not place and backup_port == owner.device.get("device_port", DEFAULT_DEVICE_PORT):
                problem = f"device {owner.device['device_id']} itself uses this port on {ip}"
                remedy = "choose another backup_device_port, such as 16667"
                yield Finding(f"{place.path}.backup_device_port", shown(backup_port), "backup-port", problem, remedy)


def same_device_count(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    if target.chip != "910A":
        return
    counts = [len(server["device"]) for server in table["server_list"]]
    usual = Counter(counts).most_common(1)[0][0]
    for i, count in enumerate(counts):
        if count != usual or count not in {1, 2, 4, 8, 16}:
            problem = f"{count} devices; on 910A each server has as many, 1, 2, 4, 8 or 16"
            remedy = "give each server as many: `vpred-launch ranktable subset`"
            yield Finding(f"server_list[{i}].device", f"{count} devices", "same-device-count", problem, remedy)
    for place in places(table):
        if int(place.device["device_id"]) > 7:
            problem = "a 910A server has devices 0 to 7"
            remedy = "take N of /dev/davinciN"
            yield Finding(
                f"{place.path}.device_id", shown(place.device["device_id"]), "device-id-910a", problem, remedy
            )


Rule = Callable[[dict[str, Any], Target], Iterator[Finding]]
RULES: tuple[Rule, ...] = (
    server_count, server_ids, server_order, ranks, device_ids, device_ips, ports, backups, same_device_count,
)  # fmt: skip


def _needs_ips(table: dict[str, Any], target: Target) -> bool:
    if target.chip == "910A":
        return True
    if table["version"] == "1.2" and (pods := table.get("super_pod_list")):
        return len(pods) > 1 or not target.inter_hccs
    return len(table["server_list"]) > 1


def _ips(device: dict[str, Any]) -> list[str]:
    return device["device_ip"].split(",") if "device_ip" in device else []


def _repeated(values: list[Any]) -> list[int]:
    """Return the indices of values that came before."""
    seen: set[Any] = set()
    return [i for i, value in enumerate(values) if value in seen or seen.add(value)]  # type: ignore[func-returns-value]


def _first(pair: tuple[int, Place]) -> int:
    return pair[0]
