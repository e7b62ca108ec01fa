"""Whatever is generated is sound, merge mends what it says, and no JSON is too strange for the rules."""

import json
import time
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.cluster.config import ClusterConfig
from launcher.cluster.hosts import Device, Host
from launcher.cluster.start import Metrics
from launcher.ranktable.document import check_table
from launcher.ranktable.editing import merge, placements, subset
from launcher.ranktable.generate import make_table
from support.ranktables import TEMPLATE_TWO, table_1_0, table_1_2, table_2_0


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


@given(st.integers(2, 5), st.sampled_from([2, 4, 8]), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_merge_mends_any_order_and_numbering(servers: int, devices: int, random: Random) -> None:
    table = table_1_2(servers, devices)
    numbers = [str(rank) for rank in range(servers * devices)]
    random.shuffle(numbers)
    mixed = json.loads(json.dumps(table))
    for server in mixed["server_list"]:
        for device in server["device"]:
            device["rank_id"] = numbers.pop()
        random.shuffle(server["device"])
    # One server named twice, each time with half of its devices.
    half = mixed["server_list"][0]["device"]
    mixed["server_list"].append({**mixed["server_list"][0], "device": [half.pop()]})
    mixed["server_count"] = str(servers + 1)
    random.shuffle(mixed["server_list"])
    assert merge([mixed]) == table


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("9" * 5000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def holders(value: Any) -> list[tuple[Any, Any]]:
    """Every (list or mapping, place in it) below `value`."""
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, place) for place, _ in pairs] + [each for _, inner in pairs for each in holders(inner)]


@pytest.mark.parametrize("form", ["1.0", "1.2", "2.0", "group_list"])
@given(st.data())
@settings(max_examples=80, deadline=None)
def test_no_json_is_too_strange_to_be_told(form: str, data: st.DataObject) -> None:
    makers = {"1.0": table_1_0(2, 2), "1.2": table_1_2(2, 2), "2.0": table_2_0(2), "group_list": TEMPLATE_TWO}
    table = json.loads(json.dumps(makers[form]))
    for _ in range(data.draw(st.integers(1, 2))):
        holder, place = data.draw(st.sampled_from(holders(table)))
        holder[place] = data.draw(JSON)
    for finding in check_table(table):
        assert str(finding) and finding.remedy


def test_a_large_table_is_made_and_checked_at_once() -> None:
    """4,096 devices; bench_rank_table.py has 20,000. Work that grows with the square would take minutes."""
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
