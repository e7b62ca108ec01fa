"""Each single fault of a 2.0 table, its topology file and a table without a version is found by its own rule."""

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.ranktable import rules_v2
from launcher.ranktable.document import check_table
from launcher.ranktable.topology import check_topology
from support.ranktables import TEMPLATE_TWO, Mutation, Table, put_top, rules_of, table_2_0


def rank(table: Table, random: Random) -> Table:
    return random.choice(table["rank_list"])


def put_2(place: str, name: str, *values: Any) -> Mutation:
    def mutate(table: Table, random: Random) -> None:
        target = rank(table, random)
        if place != "rank":
            target = target["level_list"][1]
        if place == "addr":
            target = target["rank_addr_list"][0]
        target[name] = random.choice(values)

    return mutate


MUTATIONS_2: dict[str, list[Mutation]] = {
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


@pytest.mark.parametrize("rule", sorted(MUTATIONS_2))
@given(st.integers(2, 60), st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_each_fault_of_2_0_is_found_by_its_rule(rule: str, ranks: int, random: Random) -> None:
    table = table_2_0(ranks)
    random.choice(MUTATIONS_2[rule])(table, random)
    assert rule in {each.rule for each in check_table(table)}


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


TOPOLOGY: Table = {
    "version": "2.0",
    "peer_count": 2,
    "peer_list": [{"local_id": 0}, {"local_id": 1}],
    "edge_count": 2,
    "edge_list": [
        {
            "net_layer": 0, "link_type": "PEER2PEER", "protocols": ["UB_CTP"], "local_a": 0, "local_a_ports": ["0/0"],
            "local_b": 1, "local_b_ports": ["0/1"], "topo_instance_id": 0, "topo_type": "1DMESH", "position": "DEVICE",
        },
        {"net_layer": 1, "link_type": "PEER2NET", "protocols": ["UBOE", "ROCE"], "local_a": 1, "topo_type": "CLOS"},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ('"version": "2.0"', '"version": "1.0"', "topology-version"),
        ('"peer_count": 2', '"peer_count": 3', "topology-count"),
        ('"edge_count": 2', '"edge_count": "2"', "type"),
        ('{"local_id": 1}', '{"local_id": 65}', "topology-peers"),
        ('{"local_id": 1}', '{"local_id": 2}', "topology-edge-peer"),
        ('{"local_id": 1}', '{"local_id": 2}', "topology-rank"),
        ("PEER2NET", "NET2NET", "topology-edges"),
        ('"UBOE"', '"IP"', "topology-edges"),
        ('"1DMESH"', '"2DMESH"', "topology-edges"),
        ('"net_layer": 1, ', "", "required-key"),
    ],
)
def test_a_topology_file_is_checked_with_its_table(old: str, new: str, rule: str) -> None:
    assert check_topology(TOPOLOGY, table_2_0(2)) == []
    text = json.dumps(TOPOLOGY)
    assert old in text
    found = check_topology(json.loads(text.replace(old, new)), table_2_0(2))
    assert rule in {each.rule for each in found}
    assert {each.code for each in found} == {""}


@given(st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_the_base_of_the_mutations_is_sound(ranks: int) -> None:
    assert check_table(table_2_0(ranks)) == []


def test_no_rule_of_2_0_is_without_a_mutation() -> None:
    rules = rules_of(rules_v2)
    assert len(rules) > 20 and rules <= {*MUTATIONS_2, *NEVER}
