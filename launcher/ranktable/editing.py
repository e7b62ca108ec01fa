"""Makes tables from tables (merge, subset, convert) and compares two. It is pure. Its input has been checked."""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.contract.config import ConfigError
from launcher.contract.config_errors import shown
from launcher.ranktable import group_list as template_two
from launcher.ranktable.rules_pods import pods_by_server
from launcher.ranktable.table_findings import is_address

Table = dict[str, Any]
_SELECTOR = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]+)(?::(?P<devices>\d+(?:,\d+)*))?")


@dataclass(frozen=True)
class Placement:
    """Describes where one rank is. Texts are empty if the table lacks them.

    server: server_id, in 2.0 the net_instance_id of the lowest layer
    local_id: in 2.0 only, where a network may span hosts whose device ids repeat
    """

    rank: int
    server: str
    device_id: int
    device_ip: str
    super_device_id: str
    super_pod: str
    local_id: int | None = None

    @property
    def number(self) -> int:
        """Return the number that is unique on its server: device_id, in 2.0 local_id."""
        return self.device_id if self.local_id is None else self.local_id


@dataclass(frozen=True)
class Selector:
    """Selects a host (HOST) or some of its devices (HOST:0,3).

    In 2.0 it selects a net_instance_id and local_ids. An IPv6 address with devices stands in brackets.
    """

    host: str
    devices: frozenset[int] | None

    def __str__(self) -> str:
        return self.host if self.devices is None else f"{self.host}:{','.join(map(str, sorted(self.devices)))}"

    def covers(self, server: str, number: int) -> bool:
        return server == self.host and (self.devices is None or number in self.devices)


def parse_selector(text: str) -> Selector:
    """Parse a selection. Raises ConfigError: when `text` is none."""
    if is_address(text):
        return Selector(text, None)
    match = _SELECTOR.fullmatch(text)
    if match is None:
        raise ConfigError(f"found {text!r} (a selection is HOST or HOST:0,3 or [IPV6]:0,3)")
    devices = match["devices"]
    return Selector(match["host"].strip("[]"), frozenset(map(int, devices.split(","))) if devices else None)


def placements(table: Table) -> list[Placement]:
    """List the places of all ranks, in rank order."""
    if "group_list" in table:
        table = convert(table, "1.0")
    if table["version"] == "2.0":
        found = [
            Placement(rank["rank_id"], server, rank["device_id"], _addresses(rank), "", "", local_id)
            for rank in table["rank_list"]
            for server, local_id in (_identity_2(rank),)
        ]
    else:
        pod_of = pods_by_server(table)
        found = [
            Placement(
                int(device["rank_id"]), server["server_id"], int(device["device_id"]), device.get("device_ip", ""),
                device.get("super_device_id", ""), pod_of.get(server["server_id"], ""),
            )
            for server in table["server_list"]
            for device in server["device"]
        ]  # fmt: skip
    return sorted(found, key=lambda placement: placement.rank)


def merge(tables: Sequence[Table]) -> Table:
    """Merge tables into one: sorted as MindSpore requires, each device once, ranks numbered again.

    Raises ConfigError: when versions differ, or two tables disagree on a device.
    """
    versions = {table.get("version", "none") for table in tables}
    if len(versions) > 1:
        raise ConfigError(
            f"found versions {', '.join(sorted(versions))} (tables must have one version; convert them first)"
        )
    if "group_list" in tables[0]:
        return merge([convert(table, "1.0") for table in tables])
    status = "completed" if all(table.get("status") == "completed" for table in tables) else "initializing"
    if versions == {"2.0"}:
        ranks = _merged([rank for table in tables for rank in table["rank_list"]], _identity_2, "rank_id")
        _require_own_addresses(ranks)
        ranks.sort(key=_identity_2)
        return _renumbered({**tables[0], "rank_list": ranks, **({"status": status} if "status" in tables[0] else {})})
    pod_of: dict[str, str] = {}
    for table in tables:
        for server, pod in pods_by_server(table).items():
            if pod_of.setdefault(server, pod) != pod:
                raise ConfigError(f"server {server}: found in super pods {pod_of[server]} and {pod} (it lies in one)")
    servers = [server for table in tables for server in table["server_list"]]
    devices: dict[str, list[Table]] = {}
    for server in servers:
        devices.setdefault(server["server_id"], []).extend(server["device"])
    heads = [{name: value for name, value in server.items() if name != "device"} for server in servers]
    merged = []
    for head in _merged(heads, lambda head: (head["server_id"],), "device"):
        own = _merged(devices[head["server_id"]], _identity_1, "rank_id")
        merged.append({**head, "device": sorted(own, key=_identity_1)})
    merged.sort(key=lambda server: (pod_of.get(server["server_id"], ""), server["server_id"]))
    return _renumbered({**tables[0], "status": status, "server_list": merged}, pod_of)


def subset(table: Table, keeps: Callable[[str, int], bool]) -> Table:
    """Keep the devices for which `keeps(server, number)` is true, and number the ranks again.

    keeps: takes `server` and `number` of a Placement

    Raises ConfigError: when no device is left.
    """
    if "group_list" in table:
        table = convert(table, "1.0")
    kept: Table
    if table["version"] == "2.0":
        kept = {**table, "rank_list": [rank for rank in _by_rank(table["rank_list"]) if keeps(*_identity_2(rank))]}
    else:
        servers = []
        for server in table["server_list"]:
            name = server["server_id"]
            devices = [each for each in _by_rank(server["device"]) if keeps(name, int(each["device_id"]))]
            if devices:
                servers.append({**server, "device": devices})
        servers.sort(key=lambda server: int(server["device"][0]["rank_id"]))
        kept = {**table, "server_list": servers}
    if not kept.get("server_list", kept.get("rank_list")):
        raise ConfigError("no device is left (exclude fewer)")
    return _renumbered(kept, pods_by_server(table))


def convert(table: Table, version: str) -> Table:
    """Convert template two to 1.0, or 1.2 to 1.0.

    Raises ConfigError: when the requested version needs what the table does not have.
    """
    own = "group_list" if "group_list" in table else table["version"]
    if own == version:
        return table
    if own == "2.0":
        raise ConfigError(f"version: found 2.0, the table of Ascend 950 (its chips do not take {version})")
    if version != "1.0":
        raise ConfigError(
            f"version: found {own}, which names no super-pods as {version} does; make it from a cluster file with "
            "super_pod and super_device_id: `vpred-launch ranktable generate`"
        )
    if own == "group_list":
        return _renumbered({"version": "1.0", "status": table["status"], "server_list": template_two.servers(table)})
    servers = copy.deepcopy(table["server_list"])
    for server in servers:
        for device in server["device"]:
            device.pop("super_device_id", None)
    rest = {name: value for name, value in table.items() if name != "super_pod_list"}
    return _renumbered({**rest, "version": "1.0", "server_list": servers})


def diff(old: Table, new: Table) -> list[str]:
    """Return one line for each difference: version, status, devices added or removed, and changes of a device."""
    lines = []
    for name in ("version", "status"):
        if old.get(name) != new.get(name):
            lines.append(f"{name}: {shown(old.get(name))} -> {shown(new.get(name))}")
    before, after = ({(each.server, each.number): each for each in placements(table)} for table in (old, new))
    word = "local_id" if "2.0" in (old.get("version"), new.get("version")) else "device"
    lines += [f"- {server} {word} {number}" for server, number in before if (server, number) not in after]
    lines += [f"+ {server} {word} {number}" for server, number in after if (server, number) not in before]
    for key, old_place in before.items():
        if key not in after:
            continue
        for name in ("rank", "device_id", "device_ip", "super_device_id", "super_pod"):
            was, now = getattr(old_place, name), getattr(after[key], name)
            if was != now:
                lines.append(f"  {key[0]} {word} {key[1]}: {name} {shown(was)} -> {shown(now)}")
    return lines


def _renumbered(table: Table, pod_of: dict[str, str] | None = None) -> Table:
    """Number the ranks 0, 1, 2 ... in the order of the lists, and set counts and super pods to match."""
    if table["version"] == "2.0":
        ranks = [{**rank, "rank_id": number} for number, rank in enumerate(table["rank_list"])]
        return {**table, "rank_count": len(ranks), "rank_list": ranks}
    servers, rank = [], 0
    for server in table["server_list"]:
        devices = []
        for device in server["device"]:
            devices.append({**device, "rank_id": str(rank)})
            rank += 1
        servers.append({**server, "device": devices})
    result = {**table, "server_count": str(len(servers)), "server_list": servers}
    if pod_of:
        members: dict[str, list[Table]] = {}
        for server in servers:
            members.setdefault(pod_of[server["server_id"]], []).append({"server_id": server["server_id"]})
        result["super_pod_list"] = [{"super_pod_id": pod, "server_list": each} for pod, each in members.items()]
    return result


def _merged(entries: Sequence[Table], identity: Callable[[Table], tuple[Any, ...]], numbering: str) -> list[Table]:
    """Keep each entry once. Raises ConfigError: when two with the same identity differ in more than `numbering`."""
    found: dict[tuple[Any, ...], Table] = {}
    for entry in entries:
        first = found.setdefault(identity(entry), entry)
        for name in (first.keys() | entry.keys()) - {numbering}:
            if first.get(name) != entry.get(name):
                who = " ".join(map(str, identity(entry)))
                values = f"{shown(first.get(name))} and {shown(entry.get(name))}"
                raise ConfigError(f"{who}: {name}: found {values} (the tables disagree; generate the stale one again)")
    return list(found.values())


def _identity_1(device: Table) -> tuple[int, int]:
    return int(device["device_id"]), int(device.get("device_port", 0))


def _identity_2(rank: Table) -> tuple[str, int]:
    return rank["level_list"][0]["net_instance_id"], rank["local_id"]


def _require_own_addresses(ranks: Sequence[Table]) -> None:
    """Require that each device has one local_id. Raises ConfigError: when one has two."""
    found: dict[str, Table] = {}
    for rank in ranks:
        first = found.setdefault(_addresses(rank), rank)
        if first is not rank:
            who = " and ".join(f"{each} local_id {number}" for each, number in map(_identity_2, (first, rank)))
            raise ConfigError(f"{who}: found the same addresses (the tables disagree; generate the stale one again)")


def _addresses(rank: Table) -> str:
    return ",".join(addr["addr"] for level in rank["level_list"] for addr in level["rank_addr_list"])


def _by_rank(ranks: Sequence[Table]) -> list[Table]:
    return sorted(ranks, key=lambda rank: int(rank["rank_id"]))
