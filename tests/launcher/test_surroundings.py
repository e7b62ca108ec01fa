"""A launch from wherever people start it: odd paths, variables of other launchers, no HOME, ignored signals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.contract.config import ConfigError, build_document
from launcher.contract.exit_codes import ExitCode
from launcher.contract.process import default_signals
from launcher.planning.mpirun import starting_place

AS_ROOT = "cluster.launcher.allow_run_as_root=true"
# Of MindSpore's tutorial on dynamic clusters, of a shell inside an MPI job, of a hydra that is gone, of an old table.
LEFT_OVER = {
    **{"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "8", "MS_SCHED_HOST": "10.0.0.1", "MS_SCHED_PORT": "8118"},
    **{"RANK_ID": "3", "RANK_SIZE": "8", "DEVICE_ID": "3", "RANK_TABLE_FILE": "/nowhere/table.json"},
    **{"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "5", "PMIX_RANK": "2", "PMIX_NAMESPACE": "gone@1"},
    **{"PMIX_SERVER_URI41": "gone@0.0;tcp4://127.0.0.1:1", "PRTE_LAUNCHED": "1", "VPRED_RANK": "1"},
    **{"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_FD": "77", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"},
    **{"SLURM_PROCID": "x", "SLURM_STEP_ID": "y"},
}


@pytest.mark.parametrize("name", ["a,b", "a b,c:d'e\"f%g=h\n-i\\j$K*é猫", "-" * 200])
def test_a_run_directory_of_any_name_works(bench, name):
    root = bench.root / name
    root.mkdir()
    odd = type(bench)(root)
    odd.env["TMPDIR"] = str(root)
    try:
        ended = odd.launch(AS_ROOT)
        assert ended.returncode == ExitCode.OK, ended.stderr
    finally:
        odd.close()


def test_variables_of_other_launchers_do_not_reach_the_ranks(bench):
    bench.env |= LEFT_OVER
    del bench.env["HOME"]
    ended = bench.launch(AS_ROOT)
    assert ended.returncode == ExitCode.OK, ended.stderr


def test_a_launch_inside_an_mpi_job(bench):
    argv = [str(Path(sys.executable).parent / "mpirun"), "-np", "1", "--bind-to", "none", *bench.argv("run", AS_ROOT)]
    env = bench.env | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    ended = subprocess.run(argv, env=env, cwd=bench.root, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == ExitCode.OK, ended.stderr


def test_mpirun_starts_in_a_folder_whose_path_it_cannot_mistake(tmp_path, monkeypatch):
    odd = tmp_path / "a,b"
    odd.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    with starting_place({"HOME": ""}) as (folder, variables):
        assert folder.parent == Path("/tmp")
        assert variables["PRTE_MCA_prte_local_tmpdir_base"] == str(folder)
        assert Path(variables["HOME"]).is_absolute()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with starting_place({"HOME": "/home/me"}) as (folder, variables):
        assert folder.parent == tmp_path if len(str(tmp_path)) < 60 else Path("/tmp")
        assert variables["HOME"] == "/home/me"


@pytest.mark.parametrize("key", ["environment", "launcher"])
def test_a_cluster_file_cannot_tell_ranks_who_they_are(key):
    from launcher.cluster.config import ClusterConfig

    told = {"environment": {"MS_ROLE": "MS_WORKER"}, "launcher": {"forward_variables": ["MS_ROLE"]}}
    raw = {"name": "n", "accelerator": "cpu", "workers_per_host": 1, "hosts": [{"address": "localhost"}]}
    with pytest.raises(
        ConfigError, match="MS_ROLE tells ranks who they are, which is the launcher's to say; remove it"
    ):
        build_document(ClusterConfig, raw | {key: told[key]}, Path("cluster.yaml"))


def as_in_the_background() -> None:
    """What a script's `&`, nohup and a supervisor together leave to a program."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_in_the_background_can_be_stopped(bench, number):
    launcher = subprocess.Popen(
        bench.argv("run", AS_ROOT, "steps=100000", "step_s=0.01"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=bench.env,
        cwd=bench.root,
        preexec_fn=as_in_the_background,
    )
    try:
        statuses = [bench.run.attempt(1).status(rank) for rank in (0, 1)]
        bench.wait_until(lambda: launcher.poll() is not None or all(path.exists() for path in statuses))
        assert launcher.poll() is None, launcher.communicate()
        ignored = {pid: ignored_and_blocked(pid) for pid in bench.workers() if pid != launcher.pid}
        assert len(ignored) >= 5  # mpirun, shims and trainers
        # SIGUSR2 and SIGQUIT a shim ignores for its trainer; Python ignores SIGPIPE and SIGXFSZ.
        ours = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1}
        assert {pid: found & ours for pid, found in ignored.items() if found & ours} == {}
        launcher.send_signal(signal.SIGHUP)  # still ignored: nohup means it
        launcher.send_signal(number)
        assert launcher.wait(timeout=60) == ExitCode.PREEMPTED
        assert bench.workers() == []
    finally:
        launcher.kill()
        launcher.communicate()


def ignored_and_blocked(pid: int) -> set[int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigIgn:", "SigBlk:"))]
    assert len(masks) == 2
    return {number for number in range(1, 65) if (masks[0] | masks[1]) & 1 << (number - 1)}


def test_a_failed_run_is_seen_though_a_supervisor_ignored_sigchld(bench):
    """With SIGCHLD ignored nobody can ask how a child has ended; Python then takes it for a success."""
    ended = subprocess.run(
        bench.argv("run", AS_ROOT, "fault=raise"),
        env=bench.env,
        cwd=bench.root,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=as_in_the_background,
        check=False,
    )
    assert ended.returncode == ExitCode.FAILED, ended.stderr
    assert "a tensor went missing" in ended.stderr


def test_default_signals_leave_nothing_ignored_or_blocked():
    pid = os.fork()
    if pid == 0:
        as_in_the_background()
        default_signals()
        left = ignored_and_blocked(os.getpid()) - {32, 33}  # glibc's own
        os._exit(len(left))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_run_goes_on_when_nobody_reads_what_it_says(bench):
    launcher = bench.start(AS_ROOT, "steps=50", "--stream", "all")
    assert launcher.stdout is not None and launcher.stderr is not None
    launcher.stdout.readline()
    launcher.stdout.close()
    launcher.stderr.readline()
    launcher.stderr.close()
    assert launcher.wait(timeout=60) == ExitCode.OK
    assert bench.run.summary_json.exists()


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b"\xff", b'{"ranks": 1}', b"null", b'{"ranks": [{"rank": "x"}]}']
)
@pytest.mark.parametrize("command", ["status", "logs"])
def test_damaged_files_of_a_run_are_told_in_one_line(bench, command, content, capsys):
    from launcher.cli import main

    attempt = bench.run.attempt(1)
    attempt.root.mkdir(parents=True)
    for path in (bench.run.plan_json, attempt.record):
        bench.run.plan_json.write_text('{"ranks": [{"rank": 0, "host": "n"}]}')
        path.write_bytes(content)
        assert main([command, str(bench.run.root)]) == ExitCode.BAD_CONFIG
        said = capsys.readouterr().err
        assert said.startswith(f"{path}: not a ") and said.count("\n") == 1
        attempt.record.unlink(missing_ok=True)


def test_a_damaged_recipe_of_a_run_is_told_in_one_line(bench):
    bench.run.root.mkdir()
    for content in (b"[" * 100_000, b"\xff"):
        bench.run.train_yaml.write_bytes(content)
        refused = bench.launch(AS_ROOT, command="plan")
        assert refused.returncode == ExitCode.BAD_CONFIG
        assert refused.stderr.startswith(f"{bench.run.train_yaml}: is damaged (") and refused.stderr.count("\n") == 1
