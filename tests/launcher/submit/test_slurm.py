"""What Slurm's commands say, by stand-ins: states, lost batch hosts, preemption, refusals."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.contract.config import ConfigError
from launcher.submit.scheduler import JobState
from launcher.submit.slurm import Slurm, is_preempted, lost_batch_host, own_job_id, requeue, submit_after

Program = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Writes a program of Slurm's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, text: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return write


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ("7|RUNNING|None|n[1-2]|59:00", JobState("7", "running", "RUNNING", "", "n[1-2]", "59:00")),
        ("7|COMPLETING|None|n2|0:00", JobState("7", "running", "COMPLETING", "", "n2", "0:00")),
        ("7|PENDING|BeginTime||1:00:00", JobState("7", "pending", "PENDING", "BeginTime")),
        ("7|REQUEUE_HOLD|x|y||1:00:00", JobState("7", "pending", "REQUEUE_HOLD", "x", "y")),
        ("7|TIMEOUT|TimeLimit|n1|0:00", JobState("7", "ended", "TIMEOUT", "TimeLimit", "n1")),
        ("7|A_STATE_OF_A_LATER_SLURM|None||", JobState("7", "ended", "A_STATE_OF_A_LATER_SLURM")),
        (
            "7_[2-3]|PENDING|Priority||9:00\n7_1|RUNNING|None|n1|8:00",
            JobState("7_1", "running", "RUNNING", "", "n1", "8:00"),
        ),
        ("", None),
        ("a banner of the site", None),
    ],
)
def test_states_are_read_from_squeues_text(program: Program, lines: str, state: JobState | None) -> None:
    program("squeue", f"printf '%s\\n' '{lines}'")
    assert Slurm().query("7") == state


def test_a_forgotten_job_has_the_end_that_sacct_knows(program: Program) -> None:
    program("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert Slurm().query("7") is None
    program("sacct", "echo 'sacct: error: Slurm accounting storage is disabled' >&2; exit 1")
    assert Slurm().query("7") is None
    program("sacct", "echo 'CANCELLED by 1000|n[1-2]'")
    assert Slurm().query("7") == JobState("7", "ended", "CANCELLED", "", "n[1-2]")


def test_a_controller_that_does_not_answer_is_an_error(program: Program) -> None:
    program("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(ConfigError, match="squeue: slurm_load_jobs error: Unable to contact slurm controller; try"):
        Slurm().query("7")


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("RUNNING|n1|n[1-3]", None),
        ("RUNNING|n1|n[2-3]", ["n2", "n3"]),
        ("COMPLETING|n1|n[2-3]", None),
        ("PENDING|n/a|", None),
    ],
)
def test_a_lost_batch_host_is_seen_in_a_running_job(program: Program, line: str, left: list[str] | None) -> None:
    program("squeue", f"echo '{line}'")
    program("scontrol", 'case "$3" in "n[1-3]") printf "n1\\nn2\\nn3\\n";; *) printf "n2\\nn3\\n";; esac')
    assert lost_batch_host("7") == left


def test_preemption_is_read_from_the_job(program: Program) -> None:
    program("scontrol", "echo 'JobState=RUNNING PreemptEligibleTime=2026-11-30T22:55:22 PreemptTime=None'")
    assert not is_preempted("7")
    program("scontrol", "echo 'JobState=RUNNING PreemptTime=2026-11-30T22:55:24 SuspendTime=None'")
    assert is_preempted("7")


def test_a_refused_requeue_has_slurms_words(program: Program) -> None:
    program("scontrol", "exit 0")
    assert requeue("7") is None
    program("scontrol", "echo 'Requested operation is presently disabled for job 7' >&2; exit 1")
    assert requeue("7") == "Requested operation is presently disabled for job 7"


@pytest.mark.parametrize(("job", "words", "new"), [("7", "", "41"), ("7_3", " --array=3", "41_3")])
def test_a_new_job_starts_after_the_old(program: Program, tmp_path: Path, job: str, words: str, new: str) -> None:
    program("sbatch", f'echo "$*" >{tmp_path}/asked; echo "41;cluster"')
    assert submit_after(tmp_path / "job.sh", job) == new
    asked = (tmp_path / "asked").read_text()
    assert asked == f"--parsable --dependency=afterany:{job}{words} {tmp_path}/job.sh\n"


@pytest.mark.parametrize(
    ("env", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "7_3"),
    ],
)
def test_a_job_knows_its_id(env: dict[str, str], job: str | None) -> None:
    assert own_job_id(env) == job
