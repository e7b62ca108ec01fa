"""User's mistakes on the command line: one clear line, exit code 2, nothing written."""

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cluster.config import load_cluster
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RunDir
from launcher.planning.job import Job
from launcher.planning.trainer import Trainer
from launcher.preflight.preflight import preflight
from launcher.processes.ssh import Ssh
from support import CHECKOUT

CONFIGS = CHECKOUT / "cluster_configs"


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def refused(bench, *options: str, command: str = "run") -> str:
    """The single line on stderr of a launch that is refused and leaves no run directory."""
    result = bench.launch(*options, command=command)
    assert result.returncode == ExitCode.BAD_CONFIG, (result.stdout, result.stderr)
    assert not bench.run.root.exists()
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_misspelt_cluster_key(bench):
    assert refused(bench, "cluster.metrics.base_prt=9") == (
        "command line: metrics.base_prt: found an unknown key; did you mean 'base_port'? "
        "known: address, base_port, port_span, linger_s, tls, users_file, run_name, targets_folder, grafana_url"
    )


def test_the_trainers_own_refusal_is_relayed(bench):
    assert refused(bench, "speed=9") == f"{bench.recipe}: speed: unknown key"


def test_a_broken_trainer_is_not_the_users_mistake(bench):
    result = bench.launch("fault=check_crash")
    assert result.returncode == ExitCode.FAILED
    assert "RuntimeError: the check itself is broken" in result.stderr


def test_an_option_nobody_knows(bench):
    result = bench.launch("--dry-run")
    assert result.returncode == ExitCode.BAD_CONFIG
    assert "found '--dry-run': neither an option nor an override section.key=value" in result.stderr


def test_a_missing_cluster_file(bench):
    line = refused(bench, "--cluster", "none.yaml")
    assert line == "none.yaml: cannot be read (No such file or directory)"


def test_a_port_in_use_is_no_reason_to_end(bench):
    """The rank takes another."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", bench.port + 1))
        holder.listen()
        result = bench.launch(command="check")
    assert result.returncode == 0, result.stdout
    (line,) = [line for line in result.stdout.splitlines() if "metrics port" in line]
    assert line == (
        f"warning metrics port: 127.0.0.1:{bench.port + 1} cannot be opened (Address already in use); none needed: "
        "the rank takes another; NVIDIA's dcgm-exporter listens on 9400 (cluster.metrics.base_port)"
    )


def test_an_address_that_is_none(bench):
    line = refused(bench, "cluster.metrics.address=192.0.2.1")
    assert "192.0.2.1" in line and "(Cannot assign requested address)" in line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ('cluster.metrics.tls={"certificate": "/none.pem", "key": "/none.key"}', "metrics TLS: /none.pem, /none.key"),
        ("cluster.metrics.users_file=/none", "metrics users: /none: cannot be read"),
    ],
)
def test_files_that_metrics_cannot_be_served_with(bench, override, words):
    assert words in refused(bench, override)


def test_no_metrics(bench):
    argv = [word for word in bench.argv("run", "steps=2", "cluster.metrics=null") if "base_port" not in word]
    result = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, env=bench.env, cwd=bench.root, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(bench.run.targets_json.read_text()) == []


@pytest.mark.parametrize("place", ["file/run", "/proc/vpred/run"])
def test_a_run_directory_that_cannot_be_written(bench, place):
    (bench.root / "file").write_text("")
    line = refused(bench, "--run-dir", place)
    assert "run directory: " in line and "cannot be written (" in line
    assert line.endswith("give another --run-dir")


def test_a_full_disk(bench):
    line = refused(bench, f"cluster.preflight.min_free_disk_bytes={1 << 60}")
    assert line.startswith("error   disk: ")
    assert "1073741824.00 GiB needed; free some space" in line


def test_a_run_directory_of_another_recipe(bench):
    bench.run.root.mkdir()
    bench.run.train_yaml.write_text("steps: 7\nstep_s: 0.02\nfault: none\nseed: 3\n")
    result = bench.launch()
    assert result.returncode == ExitCode.BAD_CONFIG
    assert result.stderr.startswith(f"{bench.run.root}: belongs to a different recipe: {{'steps': 7, ")
    assert [path.name for path in bench.run.root.iterdir()] == ["train.yaml"]


def test_no_mpirun(bench):
    line = refused(bench, "cluster.launcher.mpirun=/nowhere/mpirun")
    assert line == (
        "error   mpirun: /nowhere/mpirun does not run (No such file or directory); name a working one: launcher.mpirun"
    )


def test_an_mpirun_of_another_mpi(bench):
    other = script(bench.root / "mpirun", "#!/bin/sh\necho Intel MPI 2021\n")
    line = refused(bench, f"cluster.launcher.mpirun={other}")
    assert "is neither Open MPI 4 or 5 nor MPICH (it says 'Intel MPI 2021'); name another one" in line


def test_an_mpirun_whose_ranks_do_not_see_each_other(bench):
    """As with mpi4py built for another library: every rank is alone in its world."""
    lonely = script(
        bench.root / "mpirun",
        '#!/bin/sh\n[ "$1" = --version ] && { echo "mpirun (Open MPI) 4.1.4"; exit; }\n'
        f'while [ "$1" != "{sys.executable}" ]; do shift; done\n"$@"; "$@"\n',
    )
    line = refused(bench, f"cluster.launcher.mpirun={lonely}")
    assert line.startswith(f"error   MPI: {lonely} (Open MPI 4.1.4) started 2 ranks, but mpi4py (Open MPI v")
    assert line.endswith("sees a world of 1; name the mpirun of the MPI that mpi4py uses: launcher.mpirun")


def test_an_mpirun_that_starts_nothing(bench):
    idle = script(
        bench.root / "mpirun",
        '#!/bin/sh\n[ "$1" = --version ] && { echo "mpirun (Open MPI) 4.1.4"; exit; }\nexec sleep 60\n',
    )
    line = refused(bench, f"cluster.launcher.mpirun={idle}", "cluster.preflight.mpi_timeout_s=0.5")
    assert line == (
        f"error   MPI: {idle} (Open MPI 4.1.4) started 0 of 2 ranks in 0.5 s; look at the load of the hosts and at "
        "their firewalls; launcher.mpirun"
    )


@pytest.mark.skipif(any(Path("/dev").glob("davinci[0-9]*")), reason="this machine has NPUs")
def test_ascend_is_planned_but_not_run_without_a_device(bench):
    cluster = ["--cluster", str(CONFIGS / "ascend_1x8.yaml"), "cluster.launcher.allow_run_as_root=true"]
    plan = bench.launch(*cluster, "--json", command="plan")
    assert plan.returncode == ExitCode.OK, plan.stderr
    assert len(json.loads(plan.stdout)["ranks"]) == 8
    assert refused(bench, *cluster).startswith("error   devices: localhost has no /dev/davinci*, so no Ascend NPU")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
def test_root_needs_permission(bench):
    line = refused(bench, "cluster.launcher.allow_run_as_root=false")
    assert line.startswith("error   user: root, which mpirun refuses; set launcher.allow_run_as_root: true")


def test_an_engine_without_a_collective_of_its_own(bench):
    line = refused(bench, "cluster.engine=device")
    assert line == (
        f"{CONFIGS / 'local_cpu.yaml'}: engine: found 'device' with launcher.init mpi on cpu (MindSpore's own "
        "collective MCCL cannot start that way; set launcher.init=dynamic_cluster or launcher.kind=msrun)"
    )


def test_an_msrun_that_is_missing(tmp_path, monkeypatch):
    cluster = load_cluster(CONFIGS / "local_msrun.yaml")
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.setattr("launcher.preflight.preflight.sys.executable", str(tmp_path / "python"))
    job = Job(cluster, "", None, RunDir(tmp_path / "run"), Trainer((), (), (), {}))
    (error,) = [finding for finding in preflight(job, os.environ, Ssh()) if finding.check == "msrun"]
    assert str(error) == (
        f"error   msrun: {tmp_path}/msrun cannot be run; install mindspore into this environment "
        "(pip install '.[train]'), or take launcher.kind=mpirun"
    )


def test_the_host_engine_on_ascend_says_what_it_costs(tmp_path):
    cluster = load_cluster(CONFIGS / "ascend_1x8.yaml", ["engine=host"])
    job = Job(cluster, "", None, RunDir(tmp_path / "run"), Trainer((), (), (), {}))
    (warning,) = [finding for finding in preflight(job, os.environ, Ssh()) if finding.check == "engine"]
    assert warning.severity == "warning"
    assert "14.7 GB over PCIe and launches 6,600 graphs, by estimate 15 to 30 times slower than" in warning.found


def test_a_missing_system_library_is_named_with_its_package(tmp_path):
    trainer = Trainer((), (), (), {"libvpred-none.so.9": "libvpred-none9"})
    job = Job(load_cluster(CONFIGS / "local_cpu.yaml"), "", None, RunDir(tmp_path / "run"), trainer)
    findings = preflight(job, os.environ, Ssh())
    (error,) = [finding for finding in findings if finding.severity == "error"]
    assert error.found.startswith("libvpred-none.so.9: cannot open shared object file")
    assert error.remedy == "install it, on Debian and Ubuntu: apt-get install libvpred-none9"


@pytest.mark.parametrize(
    ("kind", "named"), [("local", "launcher.oversubscribe, network.interface"), ("msrun", None), ("mpirun", None)]
)
def test_keys_without_effect_are_named_where_no_mpirun_starts(tmp_path, kind, named):
    words = [f"launcher.kind={kind}"]
    words += ["launcher.oversubscribe=true", "network.interface=lo"] if named else []
    missing = Trainer((), (), (), {"libvpred-none.so.9": "none"})  # an error, so that no slow check follows
    job = Job(load_cluster(CONFIGS / "local_cpu.yaml", words), "", None, RunDir(tmp_path / "run"), missing)
    found = [finding for finding in preflight(job, os.environ, Ssh()) if finding.check == "cluster file"]
    if named is None:
        assert found == []
        return
    (warning,) = found
    assert (warning.severity, warning.remedy) == ("warning", "remove them, or set launcher.kind: mpirun")
    assert warning.found == f"no effect: {named} (launcher.kind {kind} on one host starts no mpirun)"


def test_check_tells_all_findings_and_writes_nothing(bench):
    result = bench.launch("--json", command="check")
    assert result.returncode == ExitCode.OK, result.stderr
    findings = {finding["check"]: finding for finding in json.loads(result.stdout)}
    assert set(findings) >= {"user", "packages", "run directory", "metrics ports", "MPI"}
    assert {finding["severity"] for finding in findings.values()} <= {"ok", "warning"}
    assert "and mpi4py (Open MPI v" in findings["MPI"]["found"]
    assert not bench.run.root.exists()


def test_plan_shows_the_command_and_writes_nothing(bench):
    result = bench.launch("cluster.workers_per_host=3", command="plan")
    assert result.returncode == ExitCode.OK, result.stderr
    assert " -np 3 " in result.stdout
    assert f"metrics 127.0.0.1:{bench.port} to 127.0.0.1:{bench.port + 2}" in result.stdout
    assert not bench.run.root.exists()
