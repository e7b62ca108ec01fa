"""Plans and rank tables: golden files, and what must hold for any cluster."""

import json
import shlex
from pathlib import Path

import pytest

from launcher.cluster import load_cluster
from launcher.contract.config import ConfigError, dump_yaml, load_document
from launcher.mpirun import Mpirun
from launcher.plan import LaunchPlan, describe, make_plan
from launcher.ranktable.v1 import rank_table

GOLDEN = Path(__file__).with_name("golden")
CONFIGS = Path(__file__).resolve().parents[2] / "cluster_configs"
OPENMPI_5 = Mpirun(Path("/opt/openmpi/bin/mpirun"), (5, 0, 11))
OPENMPI_4 = Mpirun(Path("/usr/bin/mpirun"), (4, 1, 4))


def plan_for(config: str, mpirun: Mpirun = OPENMPI_5, *overrides: str) -> LaunchPlan:
    return make_plan(
        cluster=load_cluster(CONFIGS / f"{config}.yaml", overrides),
        mpirun=mpirun,
        python=Path("/srv/venv/bin/python"),
        trainer=("/srv/venv/bin/python", "-P", "-m", "vpred_train"),
        run_dir=Path("/srv/runs/demo"),
        attempt=3,
        train_yaml="seed: 1\n",
    )


@pytest.mark.parametrize("config", ["local_cpu", "ascend_4x8_mpirun"])
def test_plans_are_golden(config):
    golden = json.loads((GOLDEN / f"plan_{config}.json").read_text())
    assert plan_for(config).model_dump(mode="json") == golden


@pytest.mark.parametrize("config", ["ascend_1x8", "ascend_2x16_superpod", "ascend_4x8_mpirun"])
def test_rank_tables_are_golden(config):
    table = rank_table(load_cluster(CONFIGS / f"{config}.yaml"))
    assert table == (GOLDEN / f"rank_table_{config}.json").read_text()


def test_the_plan_in_the_run_directory_names_its_files_without_their_text():
    plan = plan_for("local_cpu")
    document = json.loads(plan.to_json())
    assert document["files"] == [
        "/srv/runs/demo/cluster.yaml",
        "/srv/runs/demo/train.yaml",
        "/srv/runs/demo/hostfile",
        "/srv/runs/demo/targets.json",
    ]
    assert shlex.join(plan.argv) in describe(plan)


def test_openmpi_4_has_its_own_words():
    argv = plan_for("local_cpu", OPENMPI_4).argv
    assert argv[:1] == ("/usr/bin/mpirun",)
    assert "--oversubscribe" in argv and "slot:OVERSUBSCRIBE" not in argv
    assert argv[argv.index("btl") + 1] == "self,vader"


def test_root_is_allowed_only_when_the_cluster_file_says_so():
    assert set(plan_for("local_cpu").environment) == {
        "OMPI_ALLOW_RUN_AS_ROOT",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
    }
    assert plan_for("local_cpu", OPENMPI_5, "launcher.allow_run_as_root=false").environment == {}


def test_the_written_cluster_file_loads_back_equal(tmp_path):
    for path in sorted(CONFIGS.glob("*.yaml")):
        cluster = load_cluster(path)
        copy = tmp_path / path.name
        copy.write_text(dump_yaml(cluster))
        assert load_document(type(cluster), copy) == cluster


def test_ranks_follow_the_text_order_of_addresses_and_device_ids(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "name: a\naccelerator: ascend\nmetrics: {address: 0.0.0.0}\nhosts:\n"
        "- {address: 10.0.0.9, devices: [{id: 1, ip: 10.1.0.1}, {id: 0, ip: 10.1.0.2}]}\n"
        "- {address: 10.0.0.10, devices: [{id: 7, ip: 10.1.0.3}]}\n"
    )
    cluster = load_cluster(path)
    table = json.loads(rank_table(cluster))
    flat = [
        (server["server_id"], device["device_id"], device["rank_id"])
        for server in table["server_list"]
        for device in server["device"]
    ]
    assert flat == [("10.0.0.10", "7", "0"), ("10.0.0.9", "0", "1"), ("10.0.0.9", "1", "2")]
    plan = make_plan(cluster, OPENMPI_5, Path("/p"), ("t",), Path("/r"), 1, "")
    assert [(place.host, str(place.device_id), str(place.rank)) for place in plan.ranks] == flat
    assert plan.files[Path("/r/hostfile")] == "10.0.0.10 slots=1\n10.0.0.9 slots=2\n"
    assert plan.argv[-1] == "7,0,1"


def leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [leaf for each in value for leaf in leaves(each)]
    return [value]


def test_rank_tables_hold_text_only():
    """HCCL answers EI0017 to a number."""
    for config in ("ascend_1x8", "ascend_4x8_mpirun"):
        table = json.loads(rank_table(load_cluster(CONFIGS / f"{config}.yaml")))
        assert all(isinstance(leaf, str) for leaf in leaves(table))
        assert (table["version"], table["status"]) == ("1.0", "completed")
        assert table["server_count"] == str(len(table["server_list"]))


def test_targets_are_reachable_from_outside_when_ranks_listen_on_all_interfaces():
    groups = json.loads(plan_for("ascend_4x8_mpirun").files[Path("/srv/runs/demo/targets.json")])
    (group,) = groups
    assert len(set(group["targets"])) == 32
    assert group["targets"][9] == "10.0.0.2:9401"


def test_targets_do_not_repeat_the_labels_of_the_metrics():
    (group,) = json.loads(plan_for("local_cpu").files[Path("/srv/runs/demo/targets.json")])
    assert group == {
        "targets": ["127.0.0.1:9400", "127.0.0.1:9401"],
        "labels": {"job": "vpred", "run": "demo"},
    }


CPU = "name: a\naccelerator: cpu\nworkers_per_host: 2\nhosts: [{address: localhost}]\n"
NPU = "name: a\naccelerator: ascend\nhosts: [{address: n1, devices: [{id: 0, ip: 10.0.0.1}]}]\n"


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (
            CPU,
            "accelerator=gpu",
            "accelerator: found 'gpu' (not one of the choices); did you mean 'cpu'? known: cpu, ascend",
        ),
        (
            CPU,
            "metrics.port=1",
            "metrics.port: found an unknown key; did you mean 'base_port'? known: address, base_port",
        ),
        (CPU, "metrics.base_port=65535", "(the last rank would need port 65536; 65535 is the highest)"),
        (CPU, "hosts=[]", "hosts: found [] "),
        (
            CPU,
            "hosts=[{address: 'a b'}]",
            "hosts[0].address: found 'a b' (must be a host name or an IP address)",
        ),
        (CPU, "hosts=[{address: n1}, {address: n1}]", "hosts: the address n1 is given 2 times"),
        (CPU, "hosts=[{address: n1}, {address: localhost}]", "hosts: localhost among several hosts"),
        (CPU, "hosts=[{address: n1}, {address: n2}]", "metrics.address: found '127.0.0.1' (ranks on several"),
        (CPU, "workers_per_host=null", "workers_per_host: found nothing (accelerator cpu needs it)"),
        (CPU, "accelerator=ascend", "workers_per_host: remove it"),
        (CPU, "launcher.mpirun=bin/mpirun", "launcher.mpirun: found 'bin/mpirun' (must be an absolute path"),
        (
            CPU,
            "environment={OMP_NUM_THREADS: '4'}",
            "environment: OMP_NUM_THREADS is set by the accelerator cpu",
        ),
        (CPU, "environment={A: 1}", "environment.A: found 1 (should be a valid string)"),
        (NPU, "workers_per_host=8", "workers_per_host: remove it (one rank per device"),
        (NPU, "hosts=[{address: n1}]", "hosts: n1 without devices"),
        (
            NPU,
            "hosts=[{address: n1, devices: [{id: 0, ip: -.-.-.-}]}]",
            "hosts[0].devices[0].ip: found '-.-.-.-'",
        ),
        (NPU, "hosts=[{address: n1, devices: [{id: 0}, {id: 0}]}]", "the device ids [0, 0] repeat"),
        (
            NPU,
            "hosts=[{address: n1, devices: [{id: 0}]}, {address: n2, devices: [{id: 0, ip: 10.0.0.2}]}]",
            "hosts: n1 device 0 has no ip",
        ),
        (
            NPU,
            "hosts=[{address: n1, devices: [{id: 0, ip: 10.0.0.2}, {id: 1, ip: 10.0.0.2}]}]",
            "hosts: the device ip 10.0.0.2 is given 2 times",
        ),
        (
            NPU,
            "hosts=[{address: n1, devices: [{id: 0, ip: 10.0.0.2}, {id: 1, ip: 'fe80::1'}]}]",
            "hosts: the device ips mix IPv4 and IPv6",
        ),
    ],
)
def test_impossible_clusters_are_refused(tmp_path, text, override, message):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    load_cluster(path)
    with pytest.raises(ConfigError) as caught:
        load_cluster(path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
