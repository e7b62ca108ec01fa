"""The preflight of many hosts with their answers made up; hccn_tool's and npu-smi's words follow the documentation."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster.config import ClusterConfig, load_cluster
from launcher.contract.run_dir import RunDir
from launcher.preflight.host_probe import facts as real_facts
from launcher.preflight.hosts import check_hosts, data_paths
from launcher.preflight.npus import npu_findings, table_entries
from launcher.processes.ssh import Answer, Unreachable
from launcher.ranktable.document import write_table
from launcher.ranktable.generate import make_table
from launcher.records.finding import Finding
from support import CHECKOUT

CONFIGS = CHECKOUT / "cluster_configs"
HEALTH = "net health status: Success\n"
TLS = "dev_id:0, tls switch[1], tls preconfigured[1]\n"


def captured(host: str, **changes: str) -> dict[str, Any]:
    """What the tools of a host of ascend_4x8_mpirun.yaml tell; `changes`: other words about a device's address."""
    last = host.rpartition(".")[2]
    words = {str(device): f"ipaddr:192.168.{100 + device}.10{last}\n" for device in range(8)}
    changed = {name.removeprefix("device_"): text for name, text in changes.items()}
    empty = {"hccn_conf": None, "ip6": {}, "mapping": "", "spod": {}}
    return {"devices": list(range(8)), "ip": words | changed, **empty}


class Made:
    """A Remote whose hosts are well, but for what `changes` says of the third."""

    def __init__(self, changes: Mapping[str, Any], answer: Answer | None = None) -> None:
        self.changes, self.answer = changes, answer

    def run(self, commands: Mapping[str, Sequence[str]], timeout_s: float) -> dict[str, Answer]:
        answers = {}
        for number, (host, argv) in enumerate(sorted(commands.items())):
            request = json.loads(argv[-1])
            facts = {
                "hostname": f"node{number}",
                "time_unix_s": time.time(),
                "versions": {"python": "3.11.2", "mindspore": "2.10.0", "code": "abc", "mpirun": "5"},
                "free_bytes": 1 << 40,
                "shm_bytes": 1 << 34,
                "memory_bytes": 1 << 40,
                "open_files": 65536,
                "missing_paths": [],
                "ports": [],
                "devices": request["devices"],
                "visible_devices": None,
                "inventory": captured(host) if request["inventory"] else None,
                "npu": {str(device): {"health": HEALTH, "tls": TLS} for device in request["devices"]},
                "npu_smi": "| NPU     Chip | Process id | Process name |\n| No running processes found in NPU 0 |\n",
            }
            if number == 2:
                facts |= self.changes
                facts["missing_paths"] = [request["paths"][0]] if "unshared" in self.changes else []
            answers[host] = Answer(host, 0, json.dumps(facts) + "\n", "", True)
            if number == 2 and self.answer is not None:
                answers[host] = self.answer
        return answers


def bad(
    changes: Mapping[str, Any], folder: Path, answer: Answer | None = None, cluster: ClusterConfig | None = None
) -> list[Finding]:
    cluster = cluster or load_cluster(CONFIGS / "ascend_4x8_mpirun.yaml")
    made = Made(changes, answer)
    findings = check_hosts(cluster, RunDir(folder / "run"), ["mindspore"], "", None, {}, made)
    return [finding for finding in findings if finding.severity != "ok"]


def test_hosts_that_are_well_and_alike_pass(tmp_path: Path) -> None:
    assert bad({}, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


OTHER = {"python": "3.11.2", "mindspore": "2.9.0", "code": "abc", "mpirun": "5"}
FAULT = {str(device): {"health": "net health status: Fault\n", "tls": TLS} for device in range(8)}
OFF = {str(device): {"health": HEALTH, "tls": "dev_id:0, tls switch[0]\n"} for device in range(8)}
OF_DEVICE_3 = "the rank table says 192.168.103.103"
MOVED = captured("10.0.0.3", device_3="ipaddr:10.1.1.1\nnetmask:255.255.255.0\n")
NO_IP = captured("10.0.0.3", device_3="ipaddr:-.-.-.-\nnetmask:-.-.-.-\n")
SILENT = captured("10.0.0.3", device_3="hccn_tool: Permission denied\n")
BUSY = "| NPU     Chip | Process id | Process name |\n| 3       0    | 4242       | python       | 1024 |\n"


@pytest.mark.parametrize(
    ("changes", "check", "found"),
    [
        ({"hostname": "node1"}, "host names", "10.0.0.2 and 10.0.0.3 are both called node1"),
        ({"versions": OTHER}, "versions", "mindspore is 2.9.0 on 10.0.0.3, 2.10.0 on 10.0.0.1"),
        ({"unshared": True}, "run directory", "10.0.0.3 does not see"),
        ({"ports": [[60000, "Address already in use"]]}, "ports", "10.0.0.3 port 60000 cannot be opened"),
        ({"time_unix_s": 1.0}, "clock", "10.0.0.3 is "),
        ({"free_bytes": 1 << 20}, "disk", "10.0.0.3 has 0.0 GiB free"),
        ({"shm_bytes": 1 << 20}, "shared memory", "10.0.0.3 has 1 MiB free in /dev/shm"),
        ({"open_files": 256}, "limits", "10.0.0.3 allows 256 open files"),
        ({"memory_bytes": 1 << 30}, "memory", "10.0.0.3 has 1.0 GiB for 8 ranks"),
        ({"devices": [0, 1, 2, 3, 4, 5, 6]}, "devices", "10.0.0.3 has no /dev/davinci7 (1 of 8 missing)"),
        ({"npu": FAULT}, "NIC health", "10.0.0.3 device 0: net health status: Fault"),
        ({"npu": OFF}, "TLS switch", "off on 10.0.0.3 device 0, on elsewhere (HCCL: EI0016)"),
        (
            {"visible_devices": "0-6"},
            "devices",
            "10.0.0.3 has ASCEND_RT_VISIBLE_DEVICES=0-6, which hides or renumbers dev",
        ),
        (
            {"visible_devices": "0,1,2,3,4,5,7,6"},
            "devices",
            "10.0.0.3 has ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,7,6, wh",
        ),
        ({"inventory": MOVED}, "rank table", f"10.0.0.3 device 3 has 10.1.1.1, {OF_DEVICE_3} (HCCL: EI0014)"),
        ({"inventory": NO_IP}, "rank table", f"10.0.0.3 device 3 has no address, {OF_DEVICE_3} (HCCL: EI0014)"),
        ({"inventory": SILENT}, "rank table", "10.0.0.3 does not tell the address of device 3 (1 such; hccn_tool: P"),
        ({"npu_smi": BUSY}, "devices busy", "10.0.0.3 device 3 is used by python (pid 4242)"),
    ],
)
def test_each_fault_is_found_on_its_host_with_a_remedy(
    tmp_path: Path, changes: dict[str, Any], check: str, found: str
) -> None:
    findings = bad(changes, tmp_path)
    assert {finding.check for finding in findings} == {check}
    assert findings[0].found.startswith(found)
    assert findings[0].remedy


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (Answer("10.0.0.3", 255, "", "Permission denied (publickey).\n", True), "Permission denied"),
        (Answer("10.0.0.3", 255, "", "kex: closed; try later; bye\n", True), "kex: closed; try later; bye"),
        (Answer("10.0.0.3", None, "", "", True), "no answer in 180 s"),
        (Answer("10.0.0.3", 1, "", "No module named launcher\n", True), "No module named launcher"),
    ],
)
def test_a_host_that_cannot_answer_is_an_error(tmp_path: Path, answer: Answer, found: str) -> None:
    (finding,) = bad({}, tmp_path, answer)
    assert finding.severity == "error" and finding.found.startswith(f"10.0.0.3: {found}") and finding.remedy


def test_why_a_host_is_out_of_reach_stays_apart_from_what_helps() -> None:
    words = "Pseudo-terminal refused; Permission denied (publickey); bye\n"
    problem = Answer("n1", 255, "", words, over_ssh=True).unreachable
    assert problem == Unreachable(words.strip(), "let this user log in without a password: ssh-copy-id n1")
    assert str(problem) == f"{words.strip()}; let this user log in without a password: ssh-copy-id n1"
    assert Answer("n1", 255, "", words).unreachable is Answer("n1", 1, "", words, over_ssh=True).unreachable is None


def test_what_a_spare_host_lacks_is_a_warning(tmp_path: Path) -> None:
    cluster = load_cluster(CONFIGS / "ascend_4x8_mpirun.yaml")
    *own, third, fourth = cluster.hosts
    hosts = {"hosts": (*own, fourth), "restart": cluster.restart.model_copy(update={"spare_hosts": (third,)})}
    cluster = cluster.model_copy(update=hosts)
    assert bad({}, tmp_path, cluster=cluster) == []
    for changes, check in (
        ({"versions": OTHER}, "versions"),
        ({"npu": FAULT}, "NIC health"),
        ({"npu": OFF}, "TLS switch"),
    ):
        findings = bad(changes, tmp_path, cluster=cluster)
        assert {(each.severity, each.check) for each in findings} == {("warning", f"spare host, {check}")}
        assert "10.0.0.3" in findings[0].found and findings[0].remedy
    (lost,) = bad({}, tmp_path, Answer("10.0.0.3", 255, "", "Connection refused\n", True), cluster)
    assert lost == Finding(
        "warning", "spare host, reachability", "10.0.0.3: Connection refused", "start sshd on 10.0.0.3"
    )


def test_a_table_that_was_given_is_what_the_tools_are_compared_with(tmp_path: Path) -> None:
    cluster = load_cluster(CONFIGS / "ascend_4x8_mpirun.yaml")
    table = make_table(cluster)
    for server in table["server_list"]:
        for device in server["device"]:
            device["device_ip"] += f",172{device['device_ip'].removeprefix('192')}"
    write_table(tmp_path / "given.json", table)
    given = cluster.launcher.model_copy(update={"rank_table": tmp_path / "given.json"})
    (finding,) = bad({"inventory": MOVED}, tmp_path, cluster=cluster.model_copy(update={"launcher": given}))
    assert "the rank table says 192.168.103.103,172.168.103.103" in finding.found
    second = captured("10.0.0.3", device_3="ipaddr:172.168.103.103\n")
    assert bad({"inventory": second}, tmp_path, cluster=cluster.model_copy(update={"launcher": given})) == []


def test_super_pod_numbers_are_compared_too(tmp_path: Path) -> None:
    cluster = load_cluster(CONFIGS / "ascend_2x16_superpod.yaml")
    host = cluster.ordered_hosts[1]
    spod = {
        f"{number} 0": f"SDID : {device.super_device_id}\nSuper Pod ID : 0\n"
        for number, device in enumerate(host.devices)
    }
    spod["5 0"] = "SDID : 77\nSuper Pod ID : 0\n"
    mapping = "".join(f"{number} 0 {number} Ascend\n" for number in range(16))
    words = {str(device.id): f"ipaddr:{device.ip}\n" for device in host.devices}
    inventory = {"devices": [], "hccn_conf": None, "ip": words, "ip6": {}, "mapping": mapping, "spod": spod}
    facts = {"devices": list(range(16)), "visible_devices": None, "inventory": inventory, "npu": {}, "npu_smi": ""}
    (finding,) = npu_findings(host, facts, table_entries(cluster)[host.address])
    number = host.devices[5].super_device_id
    assert finding.found == f"{host.address} device 5 has SDID 77, the rank table says {number} (HCCL: EI0014)"


def test_the_probe_tells_all_that_is_compared(tmp_path: Path) -> None:
    request = {
        "packages": ["pydantic", "no-such-package"],
        "ports": [("192.0.2.1", 4000)],
        "paths": [str(tmp_path), str(tmp_path / "none")],
        "mpirun": None,
        "devices": [],
        "inventory": True,
        "place": str(tmp_path / "not" / "yet"),
    }
    told = json.loads(json.dumps(real_facts(request)))
    assert told["versions"]["pydantic"] and told["versions"]["no-such-package"] is None
    assert told["missing_paths"] == [str(tmp_path / "none")]
    assert [port for port, _ in told["ports"]] == [4000]  # no address of this machine
    assert told["free_bytes"] > 0 and told["memory_bytes"] > 0
    assert told["inventory"].keys() == captured("10.0.0.1").keys()
    assert abs(told["time_unix_s"] - time.time()) < 60


def test_the_recipes_data_is_looked_for_on_every_host(tmp_path: Path) -> None:
    recipe = f"data: {{path: {tmp_path}, split: /nowhere/here, n: 3}}\nmodel: {{weights: {tmp_path}}}\n"
    assert data_paths(recipe) == [str(tmp_path)]


def test_ctrl_c_waits_for_no_host(tmp_path: Path) -> None:
    """Of a hundred hosts none answers: 64 are being asked, the others wait for their turn."""
    ssh, asked = tmp_path / "ssh", tmp_path / "asked"
    ssh.write_text(f'#!/bin/sh\ntouch "{asked}/$$"\nexec sleep 600\n')
    ssh.chmod(0o755)
    asked.mkdir()
    program = "import sys; from launcher.processes.ssh import Ssh\n"
    program += "Ssh(sys.argv[1]).run({f'192.0.2.{n}': ['true'] for n in range(100)}, 600)"
    asker = subprocess.Popen([sys.executable, "-P", "-c", program, str(ssh)], stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 60
    while len(list(asked.iterdir())) < 64:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    asker.send_signal(signal.SIGINT)
    assert asker.wait(timeout=60) == -signal.SIGINT
    pids = [path.name for path in asked.iterdir()]
    assert len(pids) == 64 and not any(Path("/proc", pid).exists() for pid in pids)
