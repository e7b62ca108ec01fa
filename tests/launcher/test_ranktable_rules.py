"""Whatever is generated is sound, and each single fault is found by its own rule. No table here comes from an NPU."""

import ast
import json
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.cluster import ClusterConfig, Device, Host, Metrics
from launcher.ranktable import rules_pods, rules_v1, rules_v2, template_two
from launcher.ranktable.document import check_table
from launcher.ranktable.editing import merge, placements, subset
from launcher.ranktable.rules_v1 import Target
from launcher.ranktable.v1 import make_table

Table = dict[str, Any]
ON_910A = Target(chip="910A")


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


@st.composite
def clusters(draw: st.DrawFn) -> ClusterConfig:
    hosts = draw(st.lists(st.integers(1, 250), min_size=1, max_size=6, unique=True))
    devices = draw(st.sampled_from([1, 2, 8, 16]))
    pods = draw(st.booleans())
    first = draw(st.permutations(range(devices)))
    names = sorted(f"10.0.0.{each}" for each in hosts)
    return ClusterConfig(
        name="any",
        accelerator="ascend",
        metrics=Metrics(address="::"),
        hosts=tuple(
            Host(
                address=name,
                super_pod=str(i // 2) if pods else None,
                devices=tuple(
                    Device(id=d, ip=f"10.1.{i}.{d + 1}", super_device_id=i * 65536 + d if pods else None) for d in first
                ),
            )
            for i, name in enumerate(names)
        ),
    )


@given(clusters())
@settings(max_examples=60, deadline=None)
def test_what_is_generated_is_sound_and_survives_merge_and_subset(cluster: ClusterConfig) -> None:
    table = json.loads(json.dumps(make_table(cluster)))
    assert check_table(table) == []
    ranks = placements(table)
    assert [each.rank for each in ranks] == list(range(cluster.world_size))
    assert merge([table, table]) == table
    parts = [subset(table, lambda server, _, name=host.address: server == name) for host in cluster.hosts]
    assert merge(parts[::-1]) == table
    if cluster.world_size > 1:
        last = ranks[-1]
        fewer = subset(table, lambda server, device: (server, device) != (last.server, last.device_id))
        assert placements(fewer) == ranks[:-1]
        assert check_table(fewer) == []


@given(st.integers(2, 5), st.sampled_from([2, 8, 16]), st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_the_bases_of_the_mutations_are_sound(servers: int, devices: int, ranks: int) -> None:
    assert check_table(table_1_0(servers, devices), ON_910A) == [] or devices == 16
    assert check_table(table_1_2(servers, devices)) == []
    assert check_table(table_2_0(ranks)) == []


def test_a_large_table_is_made_and_checked_at_once() -> None:
    """4,096 devices; tests/benchmarks/rank_table.py has 20,000. Work that grows with the square would take minutes."""
    hosts = tuple(
        Host(
            address=f"n{h:04d}",
            super_pod=str(h // 64),
            devices=tuple(Device(id=d, ip=f"10.{h}.0.{d + 1}", super_device_id=h * 65536 + d) for d in range(16)),
        )
        for h in range(256)
    )
    begin_s = time.monotonic()
    table = make_table(ClusterConfig(name="big", accelerator="ascend", metrics=Metrics(address="::"), hosts=hosts))
    assert check_table(table) == []
    assert placements(table)[-1].rank == 4095
    assert time.monotonic() - begin_s < 30


def device_of(table: Table, random: Random) -> Table:
    return random.choice(random.choice(table["server_list"])["device"])


def put(name: str, *values: Any) -> Callable[[Table, Random], None]:
    """Set a key of any one device to one of the values."""
    return lambda table, random: device_of(table, random).update({name: random.choice(values)})


def put_server(name: str, *values: Any) -> Callable[[Table, Random], None]:
    return lambda table, random: random.choice(table["server_list"]).update({name: random.choice(values)})


def put_top(name: str, *values: Any) -> Callable[[Table, Random], None]:
    return lambda table, random: table.update({name: random.choice(values)})


def drop(name: str) -> Callable[[Table, Random], Any]:
    return lambda table, random: device_of(table, random).pop(name)


def copy_between_servers(name: str) -> Callable[[Table, Random], None]:
    def mutate(table: Table, random: Random) -> None:
        one, other = random.sample(table["server_list"], 2)
        random.choice(one["device"])[name] = random.choice(other["device"])[name]

    return mutate


def copy_within_server(*names: str) -> Callable[[Table, Random], None]:
    def mutate(table: Table, random: Random) -> None:
        one, other = random.sample(random.choice(table["server_list"])["device"], 2)
        one.update({name: other[name] for name in names})

    return mutate


def swap_ranks(table: Table, random: Random) -> None:
    """The last rank of one server for the first of another, so that neither is in one piece."""
    first, last = table["server_list"][0]["device"][0], table["server_list"][-1]["device"][-1]
    first["rank_id"], last["rank_id"] = last["rank_id"], first["rank_id"]


def reverse_ranks(table: Table, random: Random) -> None:
    total = sum(len(server["device"]) for server in table["server_list"])
    for server in table["server_list"]:
        for device in server["device"]:
            device["rank_id"] = str(total - 1 - int(device["rank_id"]))


def own_backup(table: Table, random: Random) -> None:
    device = device_of(table, random)
    device["backup_device_ip"] = device["device_ip"]


def drop_last_device(table: Table, random: Random) -> None:
    table["server_list"][-1]["device"].pop()


def pod(table: Table, random: Random) -> Table:
    return random.choice(table["super_pod_list"])


def interleave_pods(table: Table, random: Random) -> None:
    servers = table["server_list"]
    servers[1], servers[2] = servers[2], servers[1]


MUTATIONS_1: dict[str, list[Callable[[Table, Random], Any]]] = {
    "type": [
        put("rank_id", 0, None), put("device_id", 3), put("device_port", 16666), put_server("server_id", 7),
        put_server("device", {}, "none"), put_top("server_list", {}), put_top("version", 1.0), put_top("status", True),
        put("super_device_id", 5), lambda table, random: table["server_list"].append("n1"),
    ],
    "required-key": [drop("rank_id"), drop("device_id"), lambda t, r: t.pop("status"),
                     lambda t, r: t.pop("server_list"),
                     lambda t, r: r.choice(t["server_list"]).pop("server_id"), lambda t, r: t.pop("version")],
    "known-keys": [put("devcie_ip", "10.0.0.1"), put_top("servers", "2")],
    "version": [put_top("version", "1.1", "1.3", "3.0", "")],
    "status": [put_top("status", "done", "")],
    "completed": [put_top("status", "initializing")],
    "server-count": [put_top("server_count", "1", "0", "-2", "two"), lambda t, r: t.pop("server_count")],
    "server-list": [put_top("server_list", [])],
    "server-id": [put_server("server_id", "", "n" * 65)],
    "server-id-unique": [lambda t, r: t["server_list"][0].update(server_id=t["server_list"][1]["server_id"])],
    "server-order": [reverse_ranks],
    "host-ip": [put_server("host_ip", "node_0", "-.-.-.-")],
    "net-position": [put_server("net_position", "front")],
    "net-protocol": [put_server("net_protocol", "udp")],
    "device-list": [put_server("device", [])],
    "device-id": [put("device_id", "-1", "", "a", "1.0")],
    "device-unique": [copy_within_server("device_id")],
    "device-ip": [put("device_ip", "-.-.-.-", "", "10.0.0", "10.0.0.1,", "host", "10.0.0.256", "300::1::2")],
    "device-ip-needed": [drop("device_ip")],
    "device-ip-count": [put("device_ip", "10.9.0.1,10.9.0.2")],
    "device-ip-family": [put("device_ip", "fe80::1")],
    "device-ip-unique": [copy_between_servers("device_ip"), copy_within_server("device_ip")],
    "device-port": [put("device_port", "0", "65536", "-1", "x"), put("device_vnic_port", "0")],
    "host-port": [put("host_port", "0", "65536")],
    "host-port-unique": [copy_within_server("host_port")],
    "port-reserved": [put("device_port", "22", "1023"), put("host_port", "80")],
    "rank-id": [put("rank_id", "-1", "", "first")],
    "rank-unique": [copy_between_servers("rank_id"), copy_within_server("rank_id")],
    "rank-contiguous": [put("rank_id", "4711"), copy_between_servers("rank_id")],
    "rank-interleaved": [swap_ranks],
    "backup-device": [put("backup_device_ip", "-.-.-.-"), put("backup_device_port", "0")],
}  # fmt: skip
MUTATIONS_910A: dict[str, list[Callable[[Table, Random], Any]]] = {
    "same-device-count": [drop_last_device],
    "device-id-910a": [put("device_id", "8", "15")],
}
MUTATIONS_1_2: dict[str, list[Callable[[Table, Random], Any]]] = {
    "backup-other-die": [own_backup],
    "backup-port": [put("backup_device_port", "16666"), drop("backup_device_port")],
    "super-device-id": [put("super_device_id", "", "-1", "x")],
    "super-device-id-all": [drop("super_device_id")],
    "super-device-id-unique": [copy_within_server("super_device_id")],
    "super-pod-mode": [lambda t, r: t.pop("super_pod_list"), put_top("version", "1.0")],
    "super-pod-list": [put_top("super_pod_list", [])],
    "super-pod-id": [lambda t, r: pod(t, r).update(super_pod_id="")],
    "super-pod-id-unique": [lambda t, r: t["super_pod_list"][0].update(super_pod_id="1")],
    "super-pod-servers": [lambda t, r: pod(t, r).update(server_list=[]),
                          lambda t, r: pod(t, r)["server_list"][0].update(server_id="")],
    "super-pod-server-known": [lambda t, r: pod(t, r)["server_list"].append({"server_id": "n9"})],
    "super-pod-server-once": [
        lambda t, r: t["super_pod_list"][0]["server_list"].append(t["super_pod_list"][1]["server_list"][0]),
        lambda t, r: pod(t, r)["server_list"].pop(),
    ],
    "super-pod-interleaved": [interleave_pods],
}  # fmt: skip


def rank(table: Table, random: Random) -> Table:
    return random.choice(table["rank_list"])


def put_2(place: str, name: str, *values: Any) -> Callable[[Table, Random], None]:
    def mutate(table: Table, random: Random) -> None:
        target = rank(table, random)
        if place != "rank":
            target = target["level_list"][1]
        if place == "addr":
            target = target["rank_addr_list"][0]
        target[name] = random.choice(values)

    return mutate


MUTATIONS_2: dict[str, list[Callable[[Table, Random], Any]]] = {
    "type": [put_2("rank", "rank_id", "0", True), put_2("rank", "device_port", "16666"), put_top("rank_count", "2"),
             put_2("level", "net_layer", "1"), put_2("addr", "ports", "1/0")],
    "required-key": [lambda t, r: rank(t, r).pop("level_list"), lambda t, r: t.pop("rank_count"),
                     lambda t, r: rank(t, r)["level_list"][0]["rank_addr_list"][0].pop("addr")],
    "known-keys": [put_2("rank", "rankid", 1)],
    "version": [put_top("version", "2.1")],
    "status": [put_top("status", "done")],
    "completed": [put_top("status", "initializing")],
    "switch": [put_top("detour", "yes")],
    "rank-count": [put_top("rank_count", 0, 65537, 61), lambda t, r: t["rank_list"].append(t["rank_list"][0])],
    "rank-list": [put_top("rank_list", [])],
    "rank-id": [put_2("rank", "rank_id", -1)],
    "rank-unique": [lambda t, r: t["rank_list"][0].update(rank_id=1)],
    "rank-contiguous": [put_2("rank", "rank_id", 4711)],
    "local-id": [put_2("rank", "local_id", -1, 65), put_2("rank", "replaced_local_id", 64)],
    "replaced-local-id": [put_2("rank", "local_id", 64)],
    "device-id": [put_2("rank", "device_id", -1, 65)],
    "device-port": [put_2("rank", "device_port", 0, 65536)],
    "host-port": [put_2("rank", "host_port", 0, 65536)],
    "level-list": [put_2("rank", "level_list", [])],
    "net-layer": [put_2("level", "net_layer", -1, 8)],
    "net-layer-order": [put_2("level", "net_layer", 0)],
    "net-instance": [put_2("level", "net_instance_id", "", "a" * 1025)],
    "net-type": [put_2("level", "net_type", "MESH", "")],
    "net-type-layer-0": [lambda t, r: rank(t, r)["level_list"][0].update(net_type="CLOS")],
    "addr-list": [put_2("level", "rank_addr_list", [], [{"addr_type": "EID", "addr": "a"}] * 25)],
    "addr-type": [put_2("addr", "addr_type", "MAC")],
    "addr": [put_2("addr", "addr", "", "1" * 257), put_2("addr", "backup_addr", "")],
    "addr-family": [put_2("addr", "addr", "fe80::1", "-.-.-.-"), put_2("addr", "addr_type", "IPV6")],
    "addr-ports": [put_2("addr", "ports", [], ["1/0"] * 17)],
    "addr-port": [put_2("addr", "ports", ["1-0"], [3], ["1/" + "0" * 31], ["D2H"])],
    "plane-id": [put_2("addr", "plane_id", "")],
}  # fmt: skip

# No value of its key is wrong, whatever it is: there is nothing to find.
NEVER = {"net-attr"}


@pytest.mark.parametrize("rule", sorted({*MUTATIONS_1, *MUTATIONS_910A, *MUTATIONS_1_2}))
@given(st.integers(2, 4), st.sampled_from([2, 4, 8]), st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_each_fault_of_1_x_is_found_by_its_rule(rule: str, servers: int, devices: int, random: Random) -> None:
    mutations = MUTATIONS_1.get(rule, []) + MUTATIONS_910A.get(rule, []) + MUTATIONS_1_2.get(rule, [])
    pods_only = rule in MUTATIONS_1_2 or rule == "backup-device"
    table = table_1_2(servers, devices) if pods_only or rule == "type" else table_1_0(servers, devices)
    if rule in {"super-pod-interleaved", "super-pod-server-once"}:
        table = table_1_2(4, devices)
    random.choice(mutations)(table, random)
    found = check_table(table, ON_910A if rule in MUTATIONS_910A else Target())
    assert rule in {each.rule for each in found}
    assert all(str(each) and each.remedy for each in found)


@pytest.mark.parametrize("rule", sorted(MUTATIONS_2))
@given(st.integers(2, 60), st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_each_fault_of_2_0_is_found_by_its_rule(rule: str, ranks: int, random: Random) -> None:
    table = table_2_0(ranks)
    random.choice(MUTATIONS_2[rule])(table, random)
    assert rule in {each.rule for each in check_table(table)}


def rules_of(module: Any) -> set[str]:
    """Names of rules in a module's source: third word of a Finding, first of a Key."""
    names = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"Finding", "Key"}:
            word = node.args[2 if node.func.id == "Finding" else 0]
            names |= {word.value} if isinstance(word, ast.Constant) else set()
    return names


def test_no_rule_is_without_a_mutation() -> None:
    one = rules_of(rules_v1) | rules_of(rules_pods)
    assert one <= {*MUTATIONS_1, *MUTATIONS_910A, *MUTATIONS_1_2}
    assert rules_of(rules_v2) <= {*MUTATIONS_2, *NEVER}
    assert len(one) > 30 and len(rules_of(rules_v2)) > 20 and rules_of(template_two)


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("rank_id", 0, "EI0017"),
        ("device_ip", "-.-.-.-", "EI0014"),
        ("device_ip", "fe80::1", "EI0001"),
        ("device_id", "1", "EI0014"),
    ],
)
def test_findings_name_place_value_remedy_and_code(key: str, value: Any, code: str) -> None:
    table = table_1_0(2, 4)
    table["server_list"][1]["device"][2][key] = value
    (finding,) = check_table(table)
    assert (finding.code, finding.severity) == (code, "error")
    assert finding.path == f"server_list[1].device[2].{key}"
    assert str(value) in finding.value and f"[HCCL: {code}]" in str(finding) and finding.remedy


def test_processes_that_share_a_device_have_a_port_each() -> None:
    table = table_1_0(1, 2)
    one, other = table["server_list"][0]["device"]
    other |= {"device_id": "0", "device_ip": one["device_ip"], "device_port": "16667"}
    assert check_table(table) == []


def test_one_super_pod_needs_no_device_ips_unless_hccs_between_servers_is_off() -> None:
    table = table_1_2(2, 2)
    ids = [member for pod in table["super_pod_list"] for member in pod["server_list"]]
    table["super_pod_list"] = [{"super_pod_id": "0", "server_list": ids}]
    for server in table["server_list"]:
        for device in server["device"]:
            del device["device_ip"], device["backup_device_ip"], device["backup_device_port"]
    assert check_table(table) == []
    assert {each.rule for each in check_table(table, Target(inter_hccs=False))} == {"device-ip-needed"}


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


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ('"instance_count": "2"', '"instance_count": "3"', "instance-count"),
        ('"device_count": "2"', '"device_count": "1"', "device-count"),
        ('"group_count": "1"', '"group_count": "2"', "group-count"),
        ('"status": "completed"', '"status": "initializing"', "completed"),
        ('"status": "completed"', '"status": "done"', "status"),
        ("192.168.1.8", "-.-.-.-", "device-ip"),
        ("192.168.1.8", "192.168.1.9", "device-ip-unique"),
        ('"n0"', '""', "server-id"),
        ('"device_id": "0"', '"device_id": 0', "type"),
        ('"device_id": "0", ', "", "required-key"),
    ],
)
def test_template_two_is_checked_too(old: str, new: str, rule: str) -> None:
    assert check_table(TEMPLATE_TWO) == []
    text = json.dumps(TEMPLATE_TWO)
    assert old in text
    assert rule in {each.rule for each in check_table(json.loads(text.replace(old, new)))}


def test_what_other_tools_write_beside_it_is_no_fault() -> None:
    table = table_1_0(2, 8)
    for server in table["server_list"]:
        server["host_nic_ip"] = "reserve"
        server["hardware_type"] = "A2"
    assert check_table(table) == []
