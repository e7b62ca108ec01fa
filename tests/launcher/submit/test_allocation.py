"""Hosts of a Slurm job: their number, their names, and the NPUs that the job was given."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from launcher.cluster.config import ClusterConfig, load_cluster
from launcher.contract.config import ConfigError
from launcher.processes.ssh import Answer
from launcher.submit.allocation import VISIBLE_DEVICES, allocated
from support import CHECKOUT

CONFIGS = CHECKOUT / "cluster_configs"
NODES = ["n1", "n2", "n3", "n4", "n5"]


class Nodes:
    """Answers like nodes with eight NPUs each, of which the job was given `visible`."""

    def __init__(self, **visible: str) -> None:
        self.visible = visible

    def run(self, commands: Mapping[str, Sequence[str]], timeout_s: float) -> dict[str, Answer]:
        return {host: self._answer(host, argv) for host, argv in commands.items()}

    def _answer(self, host: str, argv: Sequence[str]) -> Answer:
        if argv == ("printenv", VISIBLE_DEVICES):
            text = self.visible.get(host, "")
            return Answer(host, 0 if text else 1, f"{text}\n" if text else "", "")
        numbers = range(8)
        said = {"devices": [*numbers], "hccn_conf": None, "mapping": "", "spod": {}}
        ips = {str(n): f"ipaddr:192.168.{n}.{host[1:]}\n" for n in numbers}
        return Answer(host, 0, json.dumps({**said, "ip": ips, "ip6": dict.fromkeys(ips, "")}), "")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a job on n1 to n5."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\n[ "$*" = "show hostnames n[1-5]" ] && printf "%s\\n" {" ".join(NODES)}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-5]"}


def load(config: str, *overrides: str) -> ClusterConfig:
    return load_cluster(CONFIGS / f"{config}.yaml", overrides)


def test_hosts_are_the_nodes_of_the_job(job):
    made = allocated(load("slurm_cpu_2x1", "submit.nodes=3", "submit.spare_nodes=1"), job, Nodes())
    assert [host.address for host in made.hosts] == ["n1", "n2", "n3"]
    assert [host.address for host in made.restart.spare_hosts] == ["n4"]
    assert made.submit is None and made.world_size == 3
    assert ClusterConfig.model_validate_json(made.model_dump_json()) == made


def test_a_file_without_submit_is_left_alone(job):
    cluster = load("local_cpu")
    assert allocated(cluster, job, Nodes()) is cluster


def test_a_job_with_fewer_nodes_is_named(job):
    with pytest.raises(ConfigError, match=r"job 7: the job has 5 node\(s\) \(n1, n2, n3, n4, n5\), submit.nodes is 6"):
        allocated(load("slurm_cpu_2x1", "submit.nodes=6"), job, Nodes())


def test_outside_a_job_there_are_no_hosts():
    with pytest.raises(ConfigError, match="submit: found no job of Slurm around this process; hand the run over"):
        allocated(load("slurm_cpu_2x1"), {}, Nodes())


def test_names_that_slurm_cannot_expand_are_shown(job):
    with pytest.raises(ConfigError, match=r"Slurm's list of nodes: found 'x\[1'; scontrol: it said nothing"):
        allocated(load("slurm_cpu_2x1"), job | {"SLURM_JOB_NODELIST": "x[1"}, Nodes())


def test_only_the_npus_of_the_job_are_taken(job):
    cluster = load("slurm_ascend_4x8", "devices_per_host=4", "submit.slurm.gres=npu:4", "submit.slurm.exclusive=false")
    made = allocated(cluster, job, Nodes(n1="4-7", n2="0,1,2,3", n3="0,2,4,6", n4="4,5,6,7", n5="0-3"))
    ids = {host.address: [device.id for device in host.devices] for host in made.known_hosts}
    assert ids == {"n1": [4, 5, 6, 7], "n2": [0, 1, 2, 3], "n3": [0, 2, 4, 6], "n4": [4, 5, 6, 7], "n5": [0, 1, 2, 3]}
    assert made.world_size == 16 and all(device.ip for host in made.known_hosts for device in host.devices)


def test_whole_nodes_have_all_their_npus(job):
    made = allocated(load("slurm_ascend_4x8"), job, Nodes())
    assert made.world_size == 32 and len(made.restart.spare_hosts) == 1


@pytest.mark.parametrize(
    ("visible", "overrides", "message"),
    [
        ({"n1": "0-3"}, (), r"n1: the job has 4 NPUs there \(0, 1, 2, 3\), devices_per_host is 8"),
        ({"n1": "0-8"}, (), "n1: device 8 of the cluster file is not there"),
        ({"n1": "all"}, (), f"n1: {VISIBLE_DEVICES} is 'all', not a list such as 0,1,4-7"),
        ({}, ("submit.slurm.exclusive=false",), f"n1: {VISIBLE_DEVICES} is not set"),
    ],
)
def test_a_share_that_does_not_fit_is_refused(job, visible, overrides, message):
    with pytest.raises(ConfigError, match=message):
        allocated(load("slurm_ascend_4x8", *overrides), job, Nodes(**visible))
