"""Checks the topology file beside a rank table 2.0, which says how the ports of a host's NPUs are wired (Ascend 950).

It lies below /usr/local/Ascend/driver/topo. HCCL's error codes for faults in it are not documented.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from launcher.contract.config_errors import shown
from launcher.ranktable import table_findings as findings
from launcher.ranktable.table_findings import Finding, Key, check_object, entries

_PROTOCOLS = frozenset({"UB_CTP", "UB_TP", "ROCE", "HCCS", "TCP", "UB_MEM", "UBOE"})
_REMEDY = "use the file that comes with the driver"
_TOP = {
    "version": Key("topology-version", str, "must be 2.0", _REMEDY, findings.one_of("2.0"), True),
    "peer_count": Key("topology-count", int, "must be a number from 0", _REMEDY, lambda count: count >= 0, True),
    "peer_list": Key("topology-peers", list, "must name at least one NPU", _REMEDY, bool, True),
    "edge_count": Key("topology-count", int, "must be a number from 0", _REMEDY, lambda count: count >= 0, True),
    "edge_list": Key("topology-edges", list, "is a list", _REMEDY, lambda edges: True, True),
}
_PEER = {"local_id": Key("topology-peers", int, "must be from 0 to 64", _REMEDY, range(65).__contains__, True)}
_EDGE = {
    "net_layer": Key("topology-edges", int, "must be from 0 to 7", _REMEDY, range(8).__contains__, True),
    "link_type": Key("topology-edges", str, "must be PEER2PEER or PEER2NET", _REMEDY,
                     findings.one_of("PEER2PEER", "PEER2NET"), True),
    "protocols": Key("topology-edges", list, f"must be of {', '.join(sorted(_PROTOCOLS))}", _REMEDY,
                     lambda names: bool(names) and all(isinstance(each, str) and each in _PROTOCOLS for each in names),
                     True),
    "local_a": Key("topology-edges", int, "must be from 0 to 64", _REMEDY, range(65).__contains__, True),
    "local_b": Key("topology-edges", int, "must be from 0 to 64", _REMEDY, range(65).__contains__),
    "topo_type": Key("topology-edges", str, "must be CLOS or 1DMESH", _REMEDY, findings.one_of("CLOS", "1DMESH")),
}  # fmt: skip
_NOT_LOOKED_AT = frozenset({"local_a_ports", "local_b_ports", "topo_instance_id", "position"})


def check_topology(topology: dict[str, Any], table: dict[str, Any]) -> list[Finding]:
    """Find what is wrong with `topology`, alone or together with a sound rank table 2.0. Codes are empty."""
    found = list(check_object(topology, "", _TOP, frozenset()))
    for i, peer in enumerate(entries(topology, "peer_list")):
        found += check_object(peer, f"peer_list[{i}]", _PEER, frozenset())
    for i, edge in enumerate(entries(topology, "edge_list")):
        found += check_object(edge, f"edge_list[{i}]", _EDGE, _NOT_LOOKED_AT)
    if not any(each.severity == "error" for each in found):
        found += _together(topology, table)
    return [replace(each, code="") for each in found]


def _together(topology: dict[str, Any], table: dict[str, Any]) -> Iterator[Finding]:
    for what in ("peer", "edge"):
        count, number = topology[f"{what}_count"], len(topology[f"{what}_list"])
        if count != number:
            problem = f"{what}_list has {number}"
            yield Finding(f"{what}_count", shown(count), "topology-count", problem, _REMEDY)
    peers = {peer["local_id"] for peer in topology["peer_list"]}
    for i, edge in enumerate(topology["edge_list"]):
        for name in ("local_a", "local_b"):
            if name in edge and edge[name] not in peers:
                path, problem = f"edge_list[{i}].{name}", "not in peer_list"
                yield Finding(path, shown(edge[name]), "topology-edge-peer", problem, _REMEDY)
    for i, rank in enumerate(table["rank_list"]):
        if rank["local_id"] not in peers:
            path, problem = f"rank_list[{i}].local_id", "the topology file has no such NPU"
            yield Finding(path, shown(rank["local_id"]), "topology-rank", problem, "correct local_id, or " + _REMEDY)
