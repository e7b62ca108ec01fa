"""Each single fault of a 1.0 or 1.2 table is found by its own rule."""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.ranktable import rules_pods, rules_v1
from launcher.ranktable.document import check_table
from launcher.ranktable.rules_v1 import Target
from support.ranktables import Mutation, Table, put_top, rules_of, table_1_0, table_1_2

ON_910A = Target(chip="910A")


@given(st.integers(2, 5), st.sampled_from([2, 4, 8]))
@settings(max_examples=20, deadline=None)
def test_the_bases_of_the_mutations_are_sound(servers: int, devices: int) -> None:
    assert check_table(table_1_0(servers, devices), ON_910A) == []
    assert check_table(table_1_2(servers, devices)) == []


def device_of(table: Table, random: Random) -> Table:
    return random.choice(random.choice(table["server_list"])["device"])


def put(name: str, *values: Any) -> Mutation:
    """Set a key of any one device to one of the values."""
    return lambda table, random: device_of(table, random).update({name: random.choice(values)})


def put_server(name: str, *values: Any) -> Mutation:
    return lambda table, random: random.choice(table["server_list"]).update({name: random.choice(values)})


def drop(name: str) -> Mutation:
    return lambda table, random: device_of(table, random).pop(name)


def copy_between_servers(name: str) -> Mutation:
    def mutate(table: Table, random: Random) -> None:
        one, other = random.sample(table["server_list"], 2)
        random.choice(one["device"])[name] = random.choice(other["device"])[name]

    return mutate


def copy_within_server(*names: str) -> Mutation:
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


MUTATIONS_1: dict[str, list[Mutation]] = {
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


MUTATIONS_910A: dict[str, list[Mutation]] = {
    "same-device-count": [drop_last_device],
    "device-id-910a": [put("device_id", "8", "15")],
}


MUTATIONS_1_2: dict[str, list[Mutation]] = {
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


def test_no_rule_of_1_x_is_without_a_mutation() -> None:
    rules = rules_of(rules_v1) | rules_of(rules_pods)
    assert len(rules) > 30 and rules <= {*MUTATIONS_1, *MUTATIONS_910A, *MUTATIONS_1_2}


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


def test_super_pods_in_a_1_0_table_do_not_spare_it_device_ips() -> None:
    """HCCL takes 1.0 in AI-server mode, whatever pods it names."""
    table = table_1_2(2, 2) | {"version": "1.0"}
    ids = [member for each in table["super_pod_list"] for member in each["server_list"]]
    table["super_pod_list"] = [{"super_pod_id": "0", "server_list": ids}]
    del table["server_list"][1]["device"][0]["device_ip"]
    assert {each.rule for each in check_table(table) if each.severity == "error"} == {"device-ip-needed"}


def test_one_super_pod_needs_device_ips_only_when_hccs_is_off() -> None:
    table = table_1_2(2, 2)
    ids = [member for pod in table["super_pod_list"] for member in pod["server_list"]]
    table["super_pod_list"] = [{"super_pod_id": "0", "server_list": ids}]
    for server in table["server_list"]:
        for device in server["device"]:
            del device["device_ip"], device["backup_device_ip"], device["backup_device_port"]
    assert check_table(table) == []
    assert {each.rule for each in check_table(table, Target(inter_hccs=False))} == {"device-ip-needed"}


def test_what_other_tools_write_beside_it_is_no_fault() -> None:
    table = table_1_0(2, 8)
    for server in table["server_list"]:
        server["host_nic_ip"] = "reserve"
        server["hardware_type"] = "A2"
    assert check_table(table) == []
