"""Pods of a job: their names in each workload, the tables of MindCluster's controllers, and whether sshd answers."""

import json
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from launcher.cluster.config import load_cluster
from launcher.cluster.kubernetes import KubernetesConfig
from launcher.contract.config import ConfigError
from launcher.pods import hosts as module
from launcher.pods.hosts import asked_hosts, is_complete, placed, pod_names, silent, table_hosts
from launcher.processes.ssh import Answer
from support.manifests import ASCEND, CONFIGS, CPU

# As MindCluster's controllers write it for A2 (component/ascend-operator): server_id is the node's address.
TABLE = {
    "status": "completed",
    "version": "1.0",
    "server_count": "2",
    "server_list": [
        {
            "server_id": f"192.168.0.{node}",
            "container_ip": f"10.244.0.{9 - node}",
            "device": [
                {"device_id": str(n), "device_ip": f"172.16.{node}.{n}", "rank_id": str(2 * (node - 1) + n)}
                for n in (0, 1)
            ],
        }
        for node in (1, 2)
    ],
}


class Npus:
    """Answers like pods with `count` NPUs each."""

    def __init__(self, count: int) -> None:
        self.count = count

    def run(self, commands: Mapping[str, Sequence[str]], timeout_s: float) -> dict[str, Answer]:
        ips = {str(n): f"ipaddr:172.16.0.{n}\n" for n in range(self.count)}
        said = {"devices": [*range(self.count)], "hccn_conf": None, "mapping": "", "spod": {}, "ip": ips}
        text = json.dumps({**said, "ip6": dict.fromkeys(ips, "")})
        return {host: Answer(host, 0, text, "") for host in commands}


def test_pods_of_a_job_and_of_volcano_have_fixed_names() -> None:
    assert pod_names(KubernetesConfig(workload="job"), "vpred-mine", 2) == [
        "vpred-mine-0.vpred-mine",
        "vpred-mine-1.vpred-mine",
    ]
    assert pod_names(KubernetesConfig(workload="volcano"), "vpred-mine", 3) == [
        "vpred-mine-launcher-0.vpred-mine",
        "vpred-mine-worker-0.vpred-mine",
        "vpred-mine-worker-1.vpred-mine",
    ]


def test_pods_of_an_mpijob_are_those_of_its_hostfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = KubernetesConfig(workload="mpijob")
    monkeypatch.setattr(module, "MPI_HOSTFILE", tmp_path / "hostfile")
    with pytest.raises(ConfigError, match="cannot be read"):
        pod_names(settings, "vpred-mine", 2)
    (tmp_path / "hostfile").write_text("m-worker-0.m.ns.svc slots=2\nm-worker-1.m.ns.svc slots=2\n\n")
    assert pod_names(settings, "vpred-mine", 2) == ["m-worker-0.m.ns.svc", "m-worker-1.m.ns.svc"]
    with pytest.raises(ConfigError, match="found 2 hosts \\(the cluster file asks for 3\\)"):
        pod_names(settings, "vpred-mine", 3)


def test_pods_in_a_controllers_table_have_their_own_addresses(tmp_path: Path) -> None:
    path = tmp_path / "hccl.json"
    path.write_text(json.dumps(TABLE))
    found = table_hosts(path)
    assert [host.address for host in found] == ["10.244.0.8", "10.244.0.7"]
    assert [[device.ip for device in host.devices] for host in found] == [
        ["172.16.1.0", "172.16.1.1"],
        ["172.16.2.0", "172.16.2.1"],
    ]
    # A run on them makes a table of its own, in which ranks follow the text order of these addresses.
    cluster = load_cluster(CONFIGS / f"{ASCEND}.yaml", ["submit.nodes=2", "submit.spare_nodes=0", "devices_per_host=2"])
    made = placed(cluster, found, 2)
    assert [host.address for host in made.ordered_hosts] == ["10.244.0.7", "10.244.0.8"]
    assert made.launcher.rank_table is None
    with pytest.raises(ConfigError, match=r"submit.nodes: found 3 \(there are 2 pods\)"):
        placed(cluster, found, 3)
    bare = [
        host.model_copy(update={"devices": [each.model_copy(update={"ip": None}) for each in host.devices]})
        for host in found
    ]
    with pytest.raises(ConfigError, match=r"pods 10.244.0.8, 10.244.0.7: hosts: .* has no ip"):
        placed(cluster, bare, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"server_list": [{**TABLE["server_list"][0], "container_ip": ""}, TABLE["server_list"][1]]},
            "no container_ip",
        ),  # type: ignore[index]
        ({"server_count": "3"}, "server"),
    ],
)
def test_a_table_without_what_the_run_needs_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "hccl.json"
    path.write_text(json.dumps(TABLE | change))
    with pytest.raises(ConfigError, match=message):
        table_hosts(path)


def test_a_table_is_complete_when_its_controller_says_so(tmp_path: Path) -> None:
    path = tmp_path / "hccl.json"
    assert not is_complete(path)
    for text, complete in (('{"status":"initializing"}', False), ('{"status":', False), (json.dumps(TABLE), True)):
        path.write_text(text)
        assert is_complete(path) is complete


def test_pods_are_asked_for_their_npus_on_ascend_alone() -> None:
    cpu, ascend = (load_cluster(CONFIGS / f"{name}.yaml") for name in (CPU, ASCEND))
    assert [host.devices for host in asked_hosts(cpu, ["a", "b"], Npus(8))] == [(), ()]
    assert [len(host.devices) for host in asked_hosts(ascend, ["a"], Npus(8))] == [8]
    with pytest.raises(ConfigError, match=r"devices_per_host: found 8 \(a has 7 NPUs\)"):
        placed(ascend, asked_hosts(ascend, ["a"], Npus(7)), 1)


def test_a_port_that_says_nothing_of_ssh_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(server: socket.socket, words: bytes) -> None:
        connection, _ = server.accept()
        connection.sendall(words)
        connection.close()

    for words, expected in ((b"SSH-2.0-OpenSSH_9.2\r\n", []), (b"HTTP/1.1 400\r\n", ["127.0.0.1"])):
        with socket.create_server(("127.0.0.1", 0)) as server:
            monkeypatch.setattr(module, "SSH_PORT", server.getsockname()[1])
            thread = threading.Thread(target=answer, args=(server, words))
            thread.start()
            assert silent(["127.0.0.1"]) == expected
            thread.join()
    assert silent(["127.0.0.1"]) == ["127.0.0.1"]
