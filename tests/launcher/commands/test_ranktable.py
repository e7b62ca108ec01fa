"""`vpred-launch ranktable ...` as a user types it, and a table that a controller wrote used by a plan."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.cluster.config import load_cluster
from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from launcher.ranktable.controller_table import chosen_table
from launcher.ranktable.generate import rank_table
from support import CHECKOUT
from support.ranktables import table_2_0

CONFIGS = CHECKOUT / "cluster_configs"
FOUR_HOSTS = CONFIGS / "ascend_4x8_mpirun.yaml"
PODS = """
name: a3
accelerator: ascend
metrics: {address: 0.0.0.0}
hosts:
- {address: n0, super_pod: "7",
   devices: [{id: 0, ip: 10.1.0.1, super_device_id: 5}, {id: 1, ip: 10.1.0.2, super_device_id: 6}]}
- {address: n1, super_pod: "8",
   devices: [{id: 0, ip: 10.1.0.3, super_device_id: 5}, {id: 1, ip: 10.1.0.4, super_device_id: 6}]}
"""


def ranktable(capsys, *words: str | Path) -> tuple[int, str, str]:
    code = main(["ranktable", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def made(tmp_path, capsys) -> Path:
    """The table of four hosts with 8 devices each."""
    path = tmp_path / "table.json"
    assert ranktable(capsys, "generate", "--cluster", FOUR_HOSTS, "--output", path)[0] == ExitCode.OK
    return path


def server(table: Path, index: int) -> dict:
    return json.loads(table.read_text())["server_list"][index]


def test_parts_merge_to_the_whole_in_any_order(made, tmp_path, capsys):
    parts = []
    for host in ("10.0.0.3", "10.0.0.1", "10.0.0.4", "10.0.0.2"):
        parts.append(tmp_path / f"{host}.json")
        assert ranktable(capsys, "subset", made, "--include", host, "--output", parts[-1])[0] == ExitCode.OK
        assert json.loads(parts[-1].read_text())["server_count"] == "1"
    whole = tmp_path / "whole.json"
    assert ranktable(capsys, "merge", *parts, parts[0], "--output", whole)[0] == ExitCode.OK
    assert whole.read_text() == made.read_text()
    assert ranktable(capsys, "diff", made, whole) == (ExitCode.OK, "", "")


def test_merge_refuses_tables_that_disagree(made, tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text(made.read_text().replace("192.168.103.102", "192.168.103.99"))
    code, out, err = ranktable(capsys, "merge", made, other)
    assert (code, out) == (ExitCode.BAD_CONFIG, "")
    assert "device_ip: found '192.168.103.102' and '192.168.103.99'" in err


def test_tables_that_fit_alone_but_not_together_do_not_become_one(made, tmp_path, capsys):
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    for path, host in ((one, "10.0.0.1"), (other, "10.0.0.2")):
        ranktable(capsys, "subset", made, "--include", host, "--output", path)
    other.write_text(other.read_text().replace("192.168.103.102", "192.168.103.101"))
    code, out, err = ranktable(capsys, "merge", one, other, "--output", tmp_path / "whole.json")
    assert (code, out, err.count("\n")) == (ExitCode.BAD_CONFIG, "", 1)
    assert "server_list[1].device[3].device_ip: found '192.168.103.101' (also that of device 3 of 10.0.0.1)" in err
    assert not (tmp_path / "whole.json").exists()


def test_merge_mends_ranks_that_lie_among_each_other(made, tmp_path, capsys):
    mixed, mended = tmp_path / "mixed.json", tmp_path / "mended.json"
    text = made.read_text()
    mixed.write_text(text.replace('"rank_id": "0"', '"rank_id": "x"').replace('"31"', '"0"').replace('"x"', '"31"'))
    code, out, _ = ranktable(capsys, "validate", mixed)
    assert code == ExitCode.BAD_CONFIG and "`vpred-launch ranktable merge` does it" in out
    assert ranktable(capsys, "show", mixed)[0] == ExitCode.BAD_CONFIG
    assert ranktable(capsys, "merge", mixed, "--output", mended)[0] == ExitCode.OK
    assert mended.read_text() == text


def test_subset_and_diff_tell_what_went(made, tmp_path, capsys):
    part = tmp_path / "part.json"
    words = ("--exclude", "10.0.0.2", "--exclude", "10.0.0.3:0,7", "--output", part)
    assert ranktable(capsys, "subset", made, *words)[0] == ExitCode.OK
    code, out, _ = ranktable(capsys, "diff", made, part)
    assert code == ExitCode.FAILED
    lines = out.splitlines()
    assert [line for line in lines if line[0] == "-"][-2:] == ["- 10.0.0.3 device 0", "- 10.0.0.3 device 7"]
    assert len([line for line in lines if line[0] == "-"]) == 10
    assert "  10.0.0.4 device 7: rank 31 -> 21" in lines
    assert ranktable(capsys, "validate", part)[0] == ExitCode.OK


def test_hosts_of_one_network_of_2_0_merge_to_one_table_and_come_apart(tmp_path, capsys):
    """Each of two hosts counts its own devices from 0; on the network they are local_ids 0 to 3."""
    whole = table_2_0(4)
    for rank in whole["rank_list"]:
        rank["device_id"] = rank["local_id"] % 2
    for name, own in (("b", whole["rank_list"][2:]), ("a", whole["rank_list"][:2])):
        ranks = [{**rank, "rank_id": rank["device_id"]} for rank in own]
        (tmp_path / f"{name}.json").write_text(json.dumps({**whole, "rank_count": 2, "rank_list": ranks}))
    parts, merged = [tmp_path / "b.json", tmp_path / "a.json"], tmp_path / "merged.json"
    assert ranktable(capsys, "merge", *parts, parts[0], "--output", merged)[0] == ExitCode.OK
    assert json.loads(merged.read_text()) == whole

    code, out, _ = ranktable(capsys, "show", merged)
    lines = [line.split() for line in out.splitlines()]
    assert code == ExitCode.OK and lines[0][:4] == ["version", "2.0,", "4", "ranks"]
    assert lines[1:3] == [
        ["rank", "server", "device_id", "device_ip", "local_id"],
        ["0", "az0", "0", "172.16.0.1,172.17.0.1", "0"],
    ]
    assert lines[-1] == ["3", "az0", "1", "172.16.0.4,172.17.0.4", "3"]
    less = tmp_path / "less.json"
    assert ranktable(capsys, "subset", merged, "--exclude", "az0:1", "--output", less)[0] == ExitCode.OK
    left = json.loads(less.read_text())["rank_list"]
    assert [(each["rank_id"], each["local_id"], each["device_id"]) for each in left] == [
        (0, 0, 0),
        (1, 2, 0),
        (2, 3, 1),
    ]
    code, out, _ = ranktable(capsys, "diff", merged, less)
    told = ["- az0 local_id 1", "  az0 local_id 2: rank 2 -> 1", "  az0 local_id 3: rank 3 -> 2"]
    assert code == ExitCode.FAILED and out.splitlines() == told

    other = json.loads(parts[1].read_text())
    other["rank_list"][1]["local_id"] = 7
    (tmp_path / "other.json").write_text(json.dumps(other))
    code, _, err = ranktable(capsys, "merge", merged, tmp_path / "other.json")
    assert code == ExitCode.BAD_CONFIG
    assert err.startswith("az0 local_id 1 and az0 local_id 7: found the same addresses (the tables disagree;")


@pytest.mark.parametrize("word", ["10.0.0.9", "10.0.0.1:8", "10.0.0.1:0,8", "10.0.0.1:x"])
def test_a_selection_of_nothing_is_refused(made, capsys, word):
    code, _, err = ranktable(capsys, "subset", made, "--exclude", word)
    assert code == ExitCode.BAD_CONFIG
    assert word in err and err.count("\n") == 1


def test_show_lists_ranks(made, capsys):
    _, out, _ = ranktable(capsys, "show", made)
    lines = out.splitlines()
    assert lines[0] == "version 1.0, 32 ranks on 4 server(s)"
    assert lines[2 + 9].split() == ["9", "10.0.0.2", "1", "192.168.101.102", "-", "-"]
    _, out, _ = ranktable(capsys, "show", made, "--json")
    assert json.loads(out)[9]["device_ip"] == "192.168.101.102"


def test_validate_prints_each_fault_with_its_code_and_few_of_a_kind(made, capsys):
    text = made.read_text()
    made.write_text(text.replace('"192.168.', '"-.-.-.-'))
    code, out, _ = ranktable(capsys, "validate", made)
    assert code == ExitCode.BAD_CONFIG
    lines = out.splitlines()
    assert "server_list[0].device[0].device_ip: found '-.-.-.-100.101' (must be an IPv4 or IPv6" in lines[0]
    assert "[HCCL: EI0014]; `hccn_tool" in lines[0]
    assert lines[-1].endswith("... 22 more of device-ip; --json has all")
    _, out, _ = ranktable(capsys, "validate", made, "--json")
    assert len(json.loads(out)) == 32


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.json", '{"version": "1.0", // ours\n}', "JSON has no comments"),
        ("t.json", '{"version": "1.0", "ser', "half written"),
        ("t.json", "[]", "must be a mapping"),
        ("t.json", "\udcff", "no UTF-8 text"),
        ("t.txt", "{}", "must end in .json"),
        ("t.json", '{"version": "1.3"}', "found '1.3' (HCCL reads 1.0, 1.2 and, on Ascend 950, 2.0) [HCCL: EI0014]"),
        ("t.json", None, "No such file or directory"),
        ("t.json", "{}", "required-key"),
    ],
)
def test_a_file_that_is_no_table_is_one_clear_error(tmp_path, capsys, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text, errors="surrogateescape")
    code, out, err = ranktable(capsys, "validate", tmp_path / name, "--json")
    assert (code, err) == (ExitCode.BAD_CONFIG, "")
    finding = json.loads(out)[0]
    code, out, _ = ranktable(capsys, "validate", tmp_path / name)
    assert code == ExitCode.BAD_CONFIG
    assert message in out or message == finding["rule"]


def test_super_pods_give_1_2_and_convert_to_1_0_and_to_hosts(tmp_path, capsys):
    cluster, table, again = tmp_path / "c.yaml", tmp_path / "t.json", tmp_path / "again.yaml"
    cluster.write_text(PODS)
    assert ranktable(capsys, "generate", "--cluster", cluster, "--output", table)[0] == ExitCode.OK
    document = json.loads(table.read_text())
    assert document["version"] == "1.2"
    assert document["super_pod_list"] == [
        {"super_pod_id": "7", "server_list": [{"server_id": "n0"}]},
        {"super_pod_id": "8", "server_list": [{"server_id": "n1"}]},
    ]
    assert ranktable(capsys, "validate", table, "--cluster", cluster)[0] == ExitCode.OK
    _, out, _ = ranktable(capsys, "convert", table, "--to", "1.0")
    assert json.loads(out)["version"] == "1.0" and "super" not in out
    assert ranktable(capsys, "convert", table, "--to", "hosts", "--output", again)[0] == ExitCode.OK
    again.write_text(PODS.partition("hosts:")[0] + again.read_text())
    assert load_cluster(again) == load_cluster(cluster)


def test_model_arts_table_from_its_directory(tmp_path, capsys):
    instances = [
        {"pod_name": "a", "server_id": "n0", "devices": [{"device_id": "0", "device_ip": "192.168.1.8"}]},
        {"pod_name": "b", "server_id": "n1", "devices": [{"device_id": "1", "device_ip": "192.168.1.9"}]},
    ]
    table = {"status": "completed", "group_count": "1", "group_list": [{"instance_list": instances}]}
    (tmp_path / "jobstart_hccl.json").write_text(json.dumps(table))
    (tmp_path / "other.json").write_text("{}")
    code, out, _ = ranktable(capsys, "convert", tmp_path)
    assert code == ExitCode.OK
    assert json.loads(out)["server_list"][1] == {
        "server_id": "n1",
        "device": [{"device_id": "1", "device_ip": "192.168.1.9", "rank_id": "1"}],
    }
    assert ranktable(capsys, "convert", tmp_path, "--to", "1.2")[0] == ExitCode.BAD_CONFIG


def test_wait_returns_once_the_controller_is_done(made, tmp_path, capsys):
    place = tmp_path / "user" / "config"
    table = place / "jobstart_hccl.json"
    whole = made.read_text()

    def controller() -> None:
        place.mkdir(parents=True)
        table.write_text('{"status": "initia')
        table.write_text('{"status": "initializing"}')
        table.write_text(whole)

    timer = threading.Timer(0.2, controller)
    timer.start()
    code, out, _ = ranktable(capsys, "wait", place, "--timeout-s", "60", "--interval-s", "0.01")
    timer.join()
    assert (code, out.splitlines()) == (ExitCode.OK, [f"{table}: version 1.0, 32 ranks on 4 server(s)"])
    table.write_text(whole.replace("completed", "initializing"))
    code, _, err = ranktable(capsys, "wait", place, "--timeout-s", "0.05", "--interval-s", "0.01")
    assert (code, err.count("\n")) == (ExitCode.FAILED, 1)
    assert "not completed within 0.05 s" in err


@pytest.mark.parametrize("words", [("--timeout-s", "nan"), ("--timeout-s", "inf"), ("--interval-s", "-1")])
def test_a_wait_of_no_length_is_refused(capsys, tmp_path, words):
    with pytest.raises(SystemExit) as ended:
        ranktable(capsys, "wait", tmp_path / "table.json", *words)
    assert ended.value.code == ExitCode.BAD_CONFIG
    assert f"argument {words[0]}: found {words[1]!r} (give seconds, 0 or more)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("192.168.103.102", "192.168.103.99"), "a stale table (changed since it was made)"),
        (None, "a stale inventory (made of other hosts, devices or addresses than the cluster file has)"),
    ],
)
def test_a_stale_table_is_refused(made, tmp_path, capsys, change, message):
    cluster = tmp_path / "c.yaml"
    cluster.write_text(FOUR_HOSTS.read_text())
    assert ranktable(capsys, "validate", made, "--cluster", cluster)[0] == ExitCode.OK
    if change:
        made.write_text(made.read_text().replace(*change))
    else:
        cluster.write_text(FOUR_HOSTS.read_text().replace("192.168.103.102", "192.168.103.99"))
    code, out, _ = ranktable(capsys, "validate", made, "--cluster", cluster)
    assert code == ExitCode.BAD_CONFIG and message in out
    with pytest.raises(ConfigError, match=message.split(" (", maxsplit=1)[0]):
        chosen_table(load_cluster(cluster, [f"launcher.rank_table={made}"]))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"10.0.0.2"', '"10.0.0.3"', "EI0014"),
        ('"device_id": "7"', '"device_id": "9"', "found device 9 (in the cluster file it is device 7 of 10.0.0.1)"),
        ("192.168.103.102", "192.168.103.99", "rank 11: found device_ip '192.168.103.99'"),
        ("completed", "initializing", "ranktable wait"),
    ],
)
def test_a_controllers_table_must_place_ranks_as_the_cluster_file_does(made, tmp_path, old, new, message):
    theirs = tmp_path / "hccl.json"
    cluster = load_cluster(FOUR_HOSTS, [f"launcher.rank_table={theirs}"])
    theirs.write_text(made.read_text())
    assert chosen_table(cluster) == rank_table(cluster)
    theirs.write_text(made.read_text().replace('"server_id": "10.0.0.', '"server_id": "node-'))
    assert json.loads(chosen_table(cluster))["server_list"][3]["server_id"] == "node-4"
    theirs.write_text(made.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=r"launcher\.rank_table") as caught:
        chosen_table(cluster)
    assert message in str(caught.value)


def test_ranks_on_other_hosts_are_found(made, tmp_path, capsys):
    theirs = tmp_path / "hccl.json"
    table = json.loads(made.read_text())
    first, last = table["server_list"][0], table["server_list"][3]
    first["device"], last["device"] = last["device"], first["device"]
    theirs.write_text(json.dumps(table))
    code, out, _ = ranktable(capsys, "validate", theirs, "--cluster", FOUR_HOSTS)
    assert code == ExitCode.BAD_CONFIG
    assert "rank 0: found server '10.0.0.4' (in the cluster file this rank is on 10.0.0.1)" in out


def test_a_reader_that_has_seen_enough_is_no_fault(made):
    words = [sys.executable, "-P", "-m", "launcher.cli", "ranktable", "show", str(made), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=CONFIGS.parent) as show:
        show.stdout.close()
        assert show.stderr.read() == b""
    assert show.returncode == 141


def test_validate_takes_the_topology_file_of_2_0_only(made, tmp_path, capsys):
    address = {"addr_type": "IPV4", "addr": "172.16.0.1"}
    level = {"net_layer": 0, "net_instance_id": "a", "net_type": "TOPO_FILE_DESC", "rank_addr_list": [address]}
    rank = {"rank_id": 0, "local_id": 3, "device_id": 3, "level_list": [level]}
    (tmp_path / "t.json").write_text(json.dumps({"version": "2.0", "rank_count": 1, "rank_list": [rank]}))
    topology = tmp_path / "topo.json"
    document = {"version": "2.0", "peer_count": 1, "peer_list": [{"local_id": 3}], "edge_count": 0, "edge_list": []}
    topology.write_text(json.dumps(document))
    assert ranktable(capsys, "validate", tmp_path / "t.json", "--topology", topology)[0] == ExitCode.OK
    topology.write_text(json.dumps(document).replace("3", "4"))
    code, out, _ = ranktable(capsys, "validate", tmp_path / "t.json", "--topology", topology)
    assert code == ExitCode.BAD_CONFIG and "topo.json: rank_list[0].local_id: found 3" in out
    code, _, err = ranktable(capsys, "validate", made, "--topology", topology)
    assert code == ExitCode.BAD_CONFIG and "2.0 alone has one" in err


def test_discovery_needs_a_cluster_file(made, capsys):
    code, _, err = ranktable(capsys, "validate", made, "--discover")
    assert code == ExitCode.BAD_CONFIG and "--discover: found no --cluster" in err


def test_overrides_need_a_cluster_file(made, capsys):
    code, _, err = ranktable(capsys, "show", made, "name=x")
    assert code == ExitCode.BAD_CONFIG and "an override changes a cluster file" in err
    _, out, _ = ranktable(capsys, "generate", "--cluster", FOUR_HOSTS, "--include", "10.0.0.4", "--to", "hosts")
    assert out.startswith("hosts:\n- address: 10.0.0.4\n  devices:\n  - id: 0\n    ip: 192.168.100.104\n")
