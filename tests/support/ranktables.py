"""Sound tables of every form, and what the tests of their rules share. No table here comes from an NPU."""

import ast
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Table = dict[str, Any]
Mutation = Callable[[Table, Random], Any]


def table_1_0(servers: int, devices: int) -> Table:
    return {
        "version": "1.0",
        "status": "completed",
        "server_count": str(servers),
        "server_list": [
            {
                "server_id": f"10.0.0.{10 + s}",
                "host_ip": f"10.0.0.{10 + s}",
                "device": [
                    {
                        "device_id": str(d),
                        "device_ip": f"192.168.{s}.{d + 1}",
                        "device_port": "16666",
                        "host_port": str(30000 + d),
                        "rank_id": str(s * devices + d),
                    }
                    for d in range(devices)
                ],
            }
            for s in range(servers)
        ],
    }


def table_1_2(servers: int, devices: int) -> Table:
    """Two super pods; each die has its neighbour's address as its backup."""
    table = table_1_0(servers, devices) | {"version": "1.2"}
    for s, server in enumerate(table["server_list"]):
        for d, device in enumerate(server["device"]):
            device["super_device_id"] = str(s * 65536 + d)
            device["backup_device_ip"] = f"192.168.{s}.{(d ^ 1) + 1}"
            device["backup_device_port"] = "16667"
    ids = [{"server_id": server["server_id"]} for server in table["server_list"]]
    table["super_pod_list"] = [
        {"super_pod_id": "0", "server_list": ids[: servers // 2]},
        {"super_pod_id": "1", "server_list": ids[servers // 2 :]},
    ]
    return table


def table_2_0(ranks: int) -> Table:
    def level(layer: int, kind: str, addr: str) -> Table:
        address = {"addr_type": "IPV4", "addr": addr, "ports": ["1/0", "d2h"], "plane_id": "p"}
        return {
            "net_layer": layer,
            "net_instance_id": f"az{layer}",
            "net_type": kind,
            "net_attr": "",
            "rank_addr_list": [address],
        }

    return {
        "version": "2.0",
        "status": "completed",
        "rank_count": ranks,
        "rank_list": [
            {
                "rank_id": r,
                "local_id": r,
                "device_id": r,
                "device_port": 16666,
                "host_port": 60001,
                "level_list": [
                    level(0, "TOPO_FILE_DESC", f"172.16.0.{r + 1}"),
                    level(1, "CLOS", f"172.17.0.{r + 1}"),
                ],
            }
            for r in range(ranks)
        ],
    }


TEMPLATE_TWO: Table = {
    "status": "completed",
    "group_count": "1",
    "group_list": [
        {
            "group_name": "hccl_world_group",
            "instance_count": "2",
            "device_count": "2",
            "instance_list": [
                {"pod_name": "a", "server_id": "n0", "devices": [{"device_id": "0", "device_ip": "192.168.1.8"}]},
                {"pod_name": "b", "server_id": "n1", "devices": [{"device_id": "1", "device_ip": "192.168.1.9"}]},
            ],
        }
    ],
}


def put_top(name: str, *values: Any) -> Mutation:
    return lambda table, random: table.update({name: random.choice(values)})


def rules_of(module: Any) -> set[str]:
    """Names of rules in a module's source: third word of a Finding, first of a Key."""
    names = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"Finding", "Key"}:
            word = node.args[2 if node.func.id == "Finding" else 0]
            names |= {word.value} if isinstance(word, ast.Constant) else set()
    return names
