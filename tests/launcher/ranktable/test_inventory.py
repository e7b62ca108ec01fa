"""What the NPU tools say, and the cluster file that comes of it.

The texts follow the tools' documentation and reports of their users; none of them comes from an NPU of ours.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from launcher.contract.config import ConfigError
from launcher.contract.environment import environment
from launcher.processes.ssh import Answer
from launcher.ranktable import npu_probe as probe
from launcher.ranktable.discovery import discover, discovered_cluster
from launcher.ranktable.document import check_table
from launcher.ranktable.generate import make_table
from launcher.ranktable.inventory import (
    InventoryError,
    device_ip,
    host_of,
    parse_hccn_conf,
    parse_hccn_ip,
    parse_mapping,
    parse_spod_info,
)
from launcher.ranktable.npu_probe import Captured, capture

MAPPING_A2 = """\
	NPU ID                         Chip ID                        Chip Logic ID                  Chip Name
	0                              0                              0                              Ascend 910B3
	0                              1                              -                              Mcu
	1                              0                              1                              Ascend 910B3
	1                              1                              -                              Mcu
"""
MAPPING_A3_HEAD = """\
	NPU ID          Chip ID         Chip Logic ID   Chip Phy-ID     Chip Name
"""
NO_SPOD = "This device does not support querying spod-info.\n"


def spod(sdid: int, pod: int = 3) -> str:
    return (
        f"\tSDID                           : {sdid}\n\tSuper Pod Size                 : 384\n"
        f"\tSuper Pod ID                   : {pod}\n\tServer Index                   : 4\n"
    )


def a3_host(first_ip: int = 1, server: int = 0) -> Captured:
    """8 cards with two dies each."""
    rows = [f"\t{n}  {c}  {2 * n + c}  {2 * n + c}  Ascend910\n" for n in range(8) for c in range(2)]
    rows += [f"\t{n}  2  -  -  Mcu\n" for n in range(8)]
    return {
        "devices": list(range(16)),
        "hccn_conf": None,
        "ip": {str(d): f"ipaddr:10.2.{server}.{first_ip + d}\nnetmask:255.255.255.0\n" for d in range(16)},
        "ip6": {},
        "mapping": MAPPING_A3_HEAD + "".join(rows),
        "spod": {f"{n} {c}": spod(server * 4194304 + (2 * n + c)) for n in range(8) for c in range(2)},
    }


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ipaddr:192.168.100.101\nnetmask:255.255.255.0\n", "192.168.100.101"),
        ("ipaddr: 192.168.100.101 \r\nnetmask: 255.255.255.0\r\n", "192.168.100.101"),
        ("ipaddr:fd00:10::a5\nprefix_length:64\n", "fd00:10::a5"),
        ("IPv6 ipaddr:2001:db8::1/64\n", "2001:db8::1"),
        ("ipaddr:-.-.-.-\nnetmask:-.-.-.-\n", None),
        ("no ip was preset\n", None),
        ("hccn_tool: No such file or directory", None),
        ("netmask:255.255.255.0\n", None),
        ("", None),
    ],
)
def test_hccn_tool_gives_an_address_or_none(text, address):
    assert parse_hccn_ip(text) == address


def test_hccn_conf_by_device_with_ipv4_before_ipv6():
    text = (
        "address_0=192.168.100.101\nnetmask_0=255.255.255.0\nnetdetect_0=192.168.100.1\ngateway_0=192.168.100.1\n"
        "address_1=-.-.-.-\nIPv6address_1=fd00::1\n IPv6address_2 = fd00::2\naddress_2=10.0.0.2\naddress_15=10.0.0.15\n"
        "#address_3=10.0.0.3\nsend_arp_status_0=1\n"
    )
    assert parse_hccn_conf(text) == {0: "192.168.100.101", 1: "fd00::1", 2: "10.0.0.2", 15: "10.0.0.15"}
    assert parse_hccn_conf("") == {}


def test_where_an_address_comes_from():
    captured: Captured = {
        "devices": [0, 1, 2, 3],
        "hccn_conf": "address_0=10.9.9.9\naddress_2=10.0.0.2\n",
        "ip": {"0": "ipaddr:10.0.0.0\n", "1": "ipaddr:-.-.-.-\n", "2": "denied", "3": "ipaddr:-.-.-.-\n"},
        "ip6": {"0": "ipaddr:fd00::\n", "1": "ipaddr:fd00::1\n"},
        "mapping": "",
        "spod": {},
    }
    assert [device_ip(captured, device) for device in range(4)] == ["10.0.0.0", "fd00::1", "10.0.0.2", None]


def test_mapping_in_both_forms():
    assert parse_mapping(MAPPING_A2) == {0: (0, 0), 1: (1, 0)}
    # In a container the logical numbers may start anew; the physical ones count.
    rows = "\t5  0  0  10  Ascend910\n\t5  1  1  11  Ascend910\n\t5  2  -  -  Mcu\n"
    assert parse_mapping(MAPPING_A3_HEAD + rows) == {10: (5, 0), 11: (5, 1)}
    assert parse_mapping("dcmi model initialized failed\n") == {}


def test_spod_info():
    assert parse_spod_info(spod(16777216, 0)) == ("0", 16777216)
    assert parse_spod_info(spod(0, 0)) == ("0", 0)
    assert parse_spod_info(spod(4294967295)) is None  # never set
    assert parse_spod_info(NO_SPOD) is None


def test_a_host_of_16_dies_in_a_super_pod():
    host = host_of("n0", a3_host(server=1))
    assert (host.super_pod, len(host.devices)) == ("3", 16)
    assert host.devices[15].model_dump() == {"id": 15, "ip": "10.2.1.16", "super_device_id": 4194304 + 15}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": []}, "n0: no /dev/davinci*"),
        ({"spod": {"0 0": spod(0, 3), "0 1": spod(1, 4)}}, "n0: its devices name several super pods: 3, 4"),
        ({"spod": {"0 0": spod(0)}}, "n0: npu-smi tells no SDID of device 1"),
    ],
)
def test_what_cannot_be_made_a_host(change, message):
    with pytest.raises(InventoryError) as caught:
        host_of("n0", {**a3_host(), **change})
    assert message in str(caught.value)


class Played:
    """A remote that answers what was captured."""

    def __init__(self, answers: Mapping[str, Captured | Answer]) -> None:
        self._answers = answers

    def run(self, commands: Mapping[str, Sequence[str]], timeout_s: float) -> dict[str, Answer]:
        assert set(commands) == set(self._answers)
        return {
            host: answer if isinstance(answer, Answer) else Answer(host, 0, json.dumps(answer), "")
            for host, answer in self._answers.items()
        }


CLUSTER = """
name: a3
accelerator: ascend
metrics: {address: 0.0.0.0}
hosts: [{address: n1}, {address: n0, devices: [{id: 4, ip: 1.2.3.4}, {id: 5}]}]
"""


def test_discovery_keeps_to_the_devices_that_the_file_lists(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    cluster = discovered_cluster(path, [], Played({"n0": a3_host(server=0), "n1": a3_host(server=1)}))
    assert [(each.id, each.ip) for each in cluster.ordered_hosts[0].devices] == [(4, "10.2.0.5"), (5, "10.2.0.6")]
    assert cluster.world_size == 18
    table = make_table(cluster)
    assert (table["version"], check_table(table)) == ("1.2", [])
    assert table["server_list"][1]["device"][15] == {
        "device_id": "15", "rank_id": "17", "device_ip": "10.2.1.16", "super_device_id": str(4194304 + 15),
    }  # fmt: skip


def test_a_listed_device_that_is_not_there_is_told(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER.replace("id: 5", "id: 16"))
    with pytest.raises(ConfigError, match=r"n0: device 16 of the cluster file is not there \(it has 0, 1, 2"):
        discovered_cluster(path, [], Played({"n0": a3_host(), "n1": a3_host()}))


def test_every_host_that_does_not_tell_is_named():
    answers = {
        "n0": Answer("n0", 255, "", "ssh: connect to host n0 port 22: Connection refused\n", over_ssh=True),
        "n1": Answer("n1", 1, "", "Traceback\nModuleNotFoundError: No module named 'launcher'\n"),
        "n2": Answer("n2", None, "", ""),
        "n3": Answer("n3", 0, "welcome\n{}", ""),
        "n4": a3_host(),
    }
    with pytest.raises(ConfigError) as caught:
        discover(list(answers), Played(answers))
    lines = str(caught.value).splitlines()
    assert [line[:3] for line in lines] == ["n0:", "n1:", "n2:", "n3:"]
    assert "start sshd on n0" in lines[0] and "No module named 'launcher'" in lines[1]
    assert "did not end within" in lines[2] and "login script" in lines[3]


FAKE_TOOL = """#!{python}
import sys
words = sys.argv[1:]
if words[:2] == ["info", "-m"]:
    print({mapping!r})
elif words[:2] == ["info", "-t"]:
    print({no_spod!r})
elif words == ["-i", "0", "-ip", "-g"]:
    print("ipaddr:192.168.1.1\\nnetmask:255.255.255.0")
else:
    sys.exit("no ip was preset")
"""


def test_the_probe_asks_the_tools_of_its_host(tmp_path, monkeypatch):
    for name in ("npu-smi", "hccn_tool"):
        tool = tmp_path / name
        tool.write_text(FAKE_TOOL.format(python=sys.executable, mapping=MAPPING_A2, no_spod=NO_SPOD))
        tool.chmod(0o755)
    for name in ("davinci0", "davinci1", "davinci_manager"):
        (tmp_path / name).touch()
    conf = tmp_path / "hccn.conf"
    conf.write_text("address_1=192.168.1.2\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{environment()['PATH']}")
    monkeypatch.setattr(probe, "_HCCN_TOOL", Path("/nowhere/hccn_tool"))
    host = host_of("n0", json.loads(json.dumps(capture(tmp_path, conf))))
    assert [(device.id, device.ip) for device in host.devices] == [(0, "192.168.1.1"), (1, "192.168.1.2")]
    assert host.super_pod is None


def test_the_probe_gets_by_without_any_tool(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "davinci3").touch()
    host = host_of("n0", capture(tmp_path, tmp_path / "hccn.conf"))
    assert [(device.id, device.ip) for device in host.devices] == [(3, None)]
