"""The keys of `submit.slurm`: times, options that are ours, resources."""

from pathlib import Path

import pytest

from launcher.cluster.config import load_cluster
from launcher.cluster.slurm import SlurmConfig, lead_s, limit_s, slurm_faults
from launcher.contract.config import ConfigError, dump_yaml


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("30", 1800),
        ("30:10", 1810),
        ("08:00:00", 28800),
        ("1-2", 93600),
        ("1-2:3", 93780),
        ("1-0:0:5", 86405),
        ("0", 0),
        ("", None),
        ("1:2:3:4", None),
        ("8h", None),
        ("-1", None),
        ("1-", None),
        ("UNLIMITED", None),
        ("１０", None),
    ],
)
def test_time_limits_are_read_as_sbatch_does(time, seconds):
    assert limit_s(time) == seconds


@pytest.mark.parametrize(
    ("argument", "ours"),
    [
        ("--signal=USR2@60", "--signal"),
        ("--sig=USR2", "--signal"),
        ("--output", "--output"),
        ("-o x", "--output"),
        ("-N4", "--nodes"),
        ("--requeue", "--requeue"),
        ("--no-requeue", "--no-requeue"),
        ("--mem=4G", "--mem"),
        ("--array=0-3", "--array"),
        ("--wrap=true", "--wrap"),
        ("nodes=4", None),
        ("--", None),
        ("", None),
    ],
)
def test_options_of_the_launcher_are_refused(tmp_path, argument, ours):
    with pytest.raises(ConfigError) as caught:
        load_cluster(queue(tmp_path), [f"submit.slurm.arguments=['{argument}']"])
    assert f"({ours} is set by the launcher" in str(caught.value) if ours else "argument" in str(caught.value)


@pytest.mark.parametrize("argument", ["--exclude=n[1-2]", "--mem-per-cpu=4G", "-x n3", "--comment=a b", "--nice=5"])
def test_other_options_pass(tmp_path, argument):
    cluster = load_cluster(queue(tmp_path), [f"submit.slurm.arguments=['{argument}']"])
    assert cluster.submit is not None and cluster.submit.slurm.arguments == (argument,)


@pytest.mark.parametrize(
    ("gres", "devices", "fits"),
    [
        ("npu:8", 8, True),
        ("npu:910b:8", 8, True),
        ("gpu:1,npu:8", 8, True),
        ("npu:4", 8, False),
        ("npu:910b:4", 8, False),
        ("npu", 1, True),
        ("npu", 8, False),
        ("Ascend910:8", 8, True),
        ("nvme:1", 8, True),
        ("npu:4", None, True),
    ],
)
def test_npus_of_a_node_agree_with_its_devices(gres, devices, fits):
    faults = list(slurm_faults(SlurmConfig(gres=gres), 60.0, devices))
    assert (faults == []) is fits and all("submit.slurm.gres" in fault for fault in faults)


def test_the_lead_leaves_room_for_the_grace_time():
    assert lead_s(SlurmConfig(), 300.0) == 420 and lead_s(SlurmConfig(), 0.5) == 121
    assert lead_s(SlurmConfig(lead_s=90), 60.0) == 90
    assert list(slurm_faults(SlurmConfig(time="6"), 60.0, None)) == []
    (fault,) = slurm_faults(SlurmConfig(time="5:59"), 60.0, None)
    assert fault.startswith("submit.slurm.time: found '5:59', which is 359 s")
    (fault,) = slurm_faults(SlurmConfig(lead_s=59), 60.0, None)
    assert fault == "submit.slurm.lead_s: found 59 (shorter than launcher.stop_grace_s, 60)"
    (fault,) = slurm_faults(SlurmConfig(), 65416.0, None)
    assert "Slurm signals at most 65535 s early" in fault


def queue(folder: Path) -> Path:
    path = folder / "queue.yaml"
    path.write_text("name: q\naccelerator: cpu\nworkers_per_host: 2\nmetrics: {address: '::'}\nsubmit: {nodes: 2}\n")
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hosts=[{address: n1}]", "hosts: remove it (with the section submit the job's allocation declares the hosts)"),
        ("restart.spare_hosts=[{address: n1}]", "restart.spare_hosts: remove it"),
        ("devices_per_host=2", "devices_per_host: remove it (accelerator cpu has no devices"),
        ("submit=null", "hosts: found [] (list at least one, or give the file a section submit)"),
        ("metrics.address=127.0.0.1", "metrics.address: found '127.0.0.1' (ranks on several hosts need 0.0.0.0 or ::)"),
        ("restart.min_ranks=5", "restart.min_ranks: found 5 (the cluster has only 4 ranks)"),
        ("launcher={kind: local}", "launcher.kind: found 'local' for 2 hosts"),
        (
            "launcher={kind: srun, mpirun_arguments: [-v]}",
            "launcher.mpirun_arguments: remove them (kind srun starts no",
        ),
        ("launcher={kind: srun, init: rank_table}", "launcher.init: found 'rank_table' (kind srun on cpu knows mpi)"),
        ("metrics={address: '::', base_port: 65535}", "metrics.base_port: found 65535"),
    ],
)
def test_a_file_with_submit_is_checked_as_it_will_run(tmp_path, override, message):
    with pytest.raises(ConfigError) as caught:
        load_cluster(queue(tmp_path), [override])
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_file_with_submit_loads_back(tmp_path):
    cluster = load_cluster(queue(tmp_path), ["submit.slurm.time='1-0'"])
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_yaml(cluster))
    assert load_cluster(copy) == cluster and cluster.world_size == 4
