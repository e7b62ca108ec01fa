"""vpred-launch against a real mpirun with two ranks: every way in which a run can end."""

import json
import os
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import Outcome
from launcher.planning.mpirun import ROOT_VARIABLES, find_mpirun, starting_place
from launcher.supervision.failure import Failure
from support.jobs import free_ports


def outcomes(bench) -> dict[int, int]:
    records = {rank: Outcome.read(bench.run.attempt(1).outcome(rank)) for rank in (0, 1)}
    return {rank: record.returncode for rank, record in records.items() if record is not None}


def test_success_leaves_the_whole_run_directory_and_a_closing_line(bench):
    for name in ("launcher", "data", "mpi4py"):  # such folders must not shadow our packages
        folder = bench.root / name
        folder.mkdir()
        (folder / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    result = bench.launch()
    assert result.returncode == ExitCode.OK, result.stderr
    closing = result.stdout.splitlines()[-1]
    assert closing.startswith("done: 6 steps, 24 samples in 2 s, loss 0.1250, retrieval 0.75; ")
    assert str(bench.run.report_html) in closing
    assert outcomes(bench) == {0: 0, 1: 0}
    names = (
        "attempts checkpoints cluster.yaml events.jsonl hostfile launcher.prom lock plan.json summary.json targets.json"
    )
    assert sorted(path.name for path in bench.run.root.iterdir()) == [*names.split(), "train.yaml"]
    assert yaml.safe_load(bench.run.train_yaml.read_text())["steps"] == 6
    plan = json.loads(bench.run.plan_json.read_text())
    assert [place["metrics"] for place in plan["ranks"]] == [
        f"127.0.0.1:{bench.port}",
        f"127.0.0.1:{bench.port + 1}",
    ]
    assert bench.workers() == []

    again = bench.launch()
    assert again.returncode == ExitCode.OK
    assert "already complete" in again.stdout
    assert again.stdout.splitlines()[-1] == closing
    assert bench.run.last_attempt() == 1


def test_a_rank_that_raises_ends_the_job_and_is_named(bench):
    result = bench.launch("fault=raise")
    assert result.returncode == ExitCode.FAILED
    lines = result.stderr.splitlines()
    report = lines[lines.index(f"rank 1 on host {socket.gethostname()} ended with exit code 1 after step 3") :]
    assert report[1] == "cause:  ValueError: a tensor went missing"
    assert 'fake_trainer.py", line ' in report[2]
    assert str(bench.run.attempt(1).log(1)) in report[4]
    assert len(report) == 5
    failure = Failure.read(bench.run.attempt(1).failure_json)
    assert failure is not None
    assert (failure.kind, failure.rank, failure.last_step, failure.returncode) == ("exit", 1, 3, 1)
    assert failure.traceback[0] == "Traceback (most recent call last):"
    assert failure.traceback[-1] == "ValueError: a tensor went missing"
    assert bench.workers() == []


def test_a_killed_rank_is_named_and_the_next_run_is_a_new_attempt(bench):
    result = bench.launch("fault=kill")
    assert result.returncode == 128 + signal.SIGKILL
    assert f"rank 1 on host {socket.gethostname()} ended with SIGKILL after step 3" in result.stderr
    assert str(bench.run.attempt(1).log(1)) in result.stderr
    assert bench.workers() == []

    assert bench.launch("fault=kill", "cluster.name=renamed").returncode == 128 + signal.SIGKILL
    assert bench.run.last_attempt() == 2


def test_the_trainers_own_exit_code_is_passed_on(bench):
    result = bench.launch("fault=exit", "fault_rank=0")
    assert result.returncode == ExitCode.DIVERGED
    assert "rank 0 on host" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_every_rank_save_and_leave(bench, number):
    launcher = bench.start_training()
    launcher.send_signal(number)
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == ExitCode.PREEMPTED, stderr
    assert "checkpoint saved; the same command resumes" in stderr
    assert ExitCode.PREEMPTED in outcomes(bench).values()
    assert bench.workers() == []


def test_ranks_that_will_not_stop_are_killed_after_the_grace_time(bench):
    launcher = bench.start_training("fault=deaf", "cluster.launcher.stop_grace_s=0.5")
    launcher.terminate()
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == ExitCode.PREEMPTED, stderr
    assert "without a new checkpoint" in stderr
    assert bench.workers() == []


def test_nothing_survives_a_killed_launcher(bench):
    launcher = bench.start_training()
    assert len(bench.workers()) == 5  # mpirun, two shims, two trainers
    launcher.kill()
    launcher.communicate()
    bench.wait_until(lambda: bench.workers() == [])


def test_nothing_survives_a_killed_mpirun(bench):
    launcher = bench.start_training()
    pid = bench.child_of(launcher.pid)
    os.kill(pid, signal.SIGKILL)
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == ExitCode.FAILED
    assert "rank 0 on host localhost left no outcome file" in stderr
    assert "mpirun ended (SIGKILL) and left no outcome of rank 0 on host localhost, 1 on host localhost" in stderr
    assert bench.workers() == []
    assert not Path(tempfile.gettempdir(), f"ompi.{pid}").exists()


def test_mpirun_keeps_its_session_where_no_other_of_its_pid_was():
    mpirun = find_mpirun(None, os.environ)
    with starting_place(os.environ) as (folder, variables):
        argv = [mpirun.path, "-np", "1", "--bind-to", "none", "printenv", "PMIX_SERVER_TMPDIR"]
        told = subprocess.check_output(argv, env={**variables, **ROOT_VARIABLES}, text=True, timeout=60)
        assert told.startswith(f"{folder}/")
    assert not folder.exists()


def test_a_run_directory_that_is_taken_away_ends_the_run_and_no_launcher(bench):
    launcher = bench.start_training("save_every=0")
    aside = bench.root / "aside"
    bench.run.root.rename(aside)
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == ExitCode.FAILED
    assert "left no outcome file" in stderr and "run directory shared" in stderr
    assert "Traceback" not in stderr
    assert bench.workers() == []


def test_a_run_directory_takes_one_launcher_at_a_time(bench):
    bench.start_training()
    result = bench.launch("steps=100000", "step_s=0.01", f"cluster.metrics.base_port={free_ports(2)}")
    assert result.returncode == ExitCode.BAD_CONFIG
    assert f"{bench.run.root} is in use by another launcher (pid " in result.stderr
    assert bench.run.last_attempt() == 1


def test_a_targets_folder_lists_the_ranks_while_they_run(bench):
    folder = bench.root / "targets"
    folder.mkdir()
    options = (f"cluster.metrics.targets_folder={folder}", "cluster.metrics.run_name=night")
    launcher = bench.start_training(*options)
    file = folder / "local_cpu-night.json"
    groups = json.loads(file.read_text())
    assert [group["labels"]["rank"] for group in groups] == ["0", "1"]
    assert {group["labels"]["run"] for group in groups} == {"night"}
    assert 'run="night"' in bench.run.launcher_prom.read_text()
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=60)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            '[{"targets": ["a:1"], "labels": {"__vpred_run_dir": "/other/run"}}]',
            "lists the ranks of /other/run; remove",
        ),
        ("{", "lists the ranks of something else; remove it if that run is over, or give this one a name"),
        (None, "is no folder that can be written; make it"),
    ],
)
def test_a_targets_file_of_another_run_is_refused_and_kept(bench, content, words):
    folder = bench.root / "targets"
    file = folder / "local_cpu-run.json"
    if content is not None:
        folder.mkdir()
        file.write_text(content)
    result = bench.launch(f"cluster.metrics.targets_folder={folder}")
    assert result.returncode == ExitCode.BAD_CONFIG
    (line,) = [line for line in result.stderr.splitlines() if "metrics targets" in line]
    assert words in line
    assert content is None or file.read_text() == content
    assert not bench.run.attempts.exists()
