"""Checks rank table 2.0: Ascend 950. Its numbers are JSON numbers, and its addresses are listed layer by layer.

HCCL also reads a topology file of the host, see `topology`.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from launcher.contract.config_errors import shown
from launcher.ranktable import table_findings as findings
from launcher.ranktable.table_findings import Finding, Key, check_object, entries

_PORT = re.compile(r"\d+/\d+|d2h")
_RENUMBER = "number ranks 0, 1, 2 ...: `vpred-launch ranktable merge` does it"
_BACKUP_LOCAL_ID = 64


def _between(lowest: int, highest: int) -> dict[str, Any]:
    return {"must": f"must be a number from {lowest} to {highest}", "fits": range(lowest, highest + 1).__contains__}


def _at_most(count: int) -> dict[str, Any]:
    return {"must": f"must have 1 to {count} entries", "fits": lambda entries: 1 <= len(entries) <= count}


_SWITCH = Key("switch", str, "must be true or false, in quotes", "remove it", findings.one_of("true", "false"))
TOP_KEYS = {
    "version": Key("version", str, "must be 2.0", "write it", findings.one_of("2.0"), True),
    "status": Key("status", str, "must be completed or initializing", "write completed when the table is complete",
                  findings.one_of("completed", "initializing")),
    "rank_count": Key("rank-count", int, remedy="write the number of ranks", required=True, **_between(1, 65536)),
    "rank_list": Key("rank-list", list, "must have at least one rank", "list the ranks", bool, True),
    "detour": _SWITCH,
}  # fmt: skip
RANK_KEYS = {
    "rank_id": Key("rank-id", int, "must be a number from 0", _RENUMBER, lambda rank: rank >= 0, True),
    "local_id": Key("local-id", int, remedy="64 is for a backup", required=True, **_between(0, 64)),
    "replaced_local_id": Key("local-id", int, remedy="name the device that the backup replaces", **_between(0, 63)),
    "device_id": Key("device-id", int, remedy="take the physical number", required=True, **_between(0, 64)),
    "device_port": Key("device-port", int, remedy="choose another", **_between(1, 65535)),
    "host_port": Key("host-port", int, remedy="choose another", **_between(1, 65535)),
    "level_list": Key("level-list", list, remedy="list the network layers", required=True, **_at_most(8)),
    "detour": _SWITCH,
}  # fmt: skip
LEVEL_KEYS = {
    "net_layer": Key("net-layer", int, remedy="count layers from 0", required=True, **_between(0, 7)),
    "net_instance_id": Key("net-instance", str, "must have 1 to 1024 characters", "name the network",
                           findings.text_of(1024), True),
    "net_type": Key("net-type", str, "must be CLOS or TOPO_FILE_DESC", "TOPO_FILE_DESC on layer 0",
                    findings.one_of("CLOS", "TOPO_FILE_DESC"), True),
    "net_attr": Key("net-attr", str, "is text", "remove it", lambda text: True),
    "rank_addr_list": Key("addr-list", list, remedy="list the addresses", required=True, **_at_most(24)),
}  # fmt: skip
ADDR_KEYS = {
    "addr_type": Key("addr-type", str, "must be EID, IPV4 or IPV6", "say what addr is",
                     findings.one_of("EID", "IPV4", "IPV6"), True),
    "addr": Key("addr", str, "must have 1 to 256 characters", "write the address", findings.text_of(256), True),
    "ports": Key("addr-ports", list, remedy="list ports as Die/Port, such as 1/0", **_at_most(16)),
    "plane_id": Key("plane-id", str, "is text", "remove it for plane 0", bool),
    "backup_addr": Key("addr", str, "must have 1 to 256 characters", "write the address", findings.text_of(256)),
}  # fmt: skip
_IGNORED = frozenset({"control_plane"})


def structure(table: dict[str, Any]) -> Iterator[Finding]:
    """Check keys, types and single values. The other rules need these to hold."""
    yield from check_object(table, "", TOP_KEYS, _IGNORED)
    for path, rank in _items(table, "rank_list", ""):
        yield from check_object(rank, path, RANK_KEYS, _IGNORED)
        for level_path, level in _items(rank, "level_list", path):
            yield from check_object(level, level_path, LEVEL_KEYS, frozenset())
            for addr_path, addr in _items(level, "rank_addr_list", level_path):
                yield from check_object(addr, addr_path, ADDR_KEYS, frozenset())
                yield from _ports(addr, addr_path)


def ranks(table: dict[str, Any]) -> Iterator[Finding]:
    ids = [rank["rank_id"] for rank in table["rank_list"]]
    if table["rank_count"] != len(ids):
        problem = f"rank_list has {len(ids)}"
        yield Finding("rank_count", shown(table["rank_count"]), "rank-count", problem, f"write {len(ids)}")
    seen: set[int] = set()
    for i, rank in enumerate(ids):
        if rank in seen:
            yield Finding(f"rank_list[{i}].rank_id", str(rank), "rank-unique", "given before", _RENUMBER)
        seen.add(rank)
    if missing := sorted(set(range(len(ids))) - seen):
        highest = max(range(len(ids)), key=ids.__getitem__)
        problem = f"{len(ids)} ranks are 0 to {len(ids) - 1}; {missing[0]} is missing"
        yield Finding(f"rank_list[{highest}].rank_id", str(ids[highest]), "rank-contiguous", problem, _RENUMBER)


def backups(table: dict[str, Any]) -> Iterator[Finding]:
    for i, rank in enumerate(table["rank_list"]):
        if rank["local_id"] == _BACKUP_LOCAL_ID and "replaced_local_id" not in rank:
            path, problem = f"rank_list[{i}].replaced_local_id", "local_id 64 is a backup"
            yield Finding(path, "nothing", "replaced-local-id", problem, "name the local_id that it replaces")


def levels(table: dict[str, Any]) -> Iterator[Finding]:
    for path, rank in _items(table, "rank_list", ""):
        for (_, before), (level_path, level) in pairwise(_items(rank, "level_list", path)):
            if level["net_layer"] <= before["net_layer"]:
                problem, remedy = f"not above {before['net_layer']} before it", "list layers from the lowest up"
                yield Finding(f"{level_path}.net_layer", str(level["net_layer"]), "net-layer-order", problem, remedy)
        for level_path, level in _items(rank, "level_list", path):
            if level["net_layer"] == 0 and level["net_type"] != "TOPO_FILE_DESC":
                problem, remedy = "layer 0 is described by the topology file", "write TOPO_FILE_DESC"
                yield Finding(f"{level_path}.net_type", shown(level["net_type"]), "net-type-layer-0", problem, remedy)


def addresses(table: dict[str, Any]) -> Iterator[Finding]:
    families = {"IPV4": 4, "IPV6": 6}
    for path, rank in _items(table, "rank_list", ""):
        for level_path, level in _items(rank, "level_list", path):
            for addr_path, addr in _items(level, "rank_addr_list", level_path):
                wanted = families.get(addr["addr_type"])
                if wanted is not None and findings.family(addr["addr"]) != wanted:
                    problem = f"no {addr['addr_type']} address, as addr_type says"
                    yield Finding(
                        f"{addr_path}.addr", shown(addr["addr"]), "addr-family", problem, "correct one of them"
                    )


RULES = (ranks, backups, levels, addresses)


def _ports(addr: Any, path: str) -> Iterator[Finding]:
    for port_path, port in _items(addr, "ports", path):
        if not isinstance(port, str) or len(port) > 32 or not _PORT.fullmatch(port):
            problem = "must be Die/Port, such as 1/0, or d2h"
            yield Finding(port_path, shown(port), "addr-port", problem, "correct or remove it")


def _items(value: Any, name: str, path: str) -> list[tuple[str, Any]]:
    """Return the entries of the list `value[name]` with their paths."""
    prefix = f"{path}.{name}" if path else name
    return [(f"{prefix}[{i}]", each) for i, each in enumerate(entries(value, name))]
