"""The channel through Slurm's steps, with a stand-in for srun."""

import stat
from pathlib import Path

import pytest

from launcher.processes.srun import Srun, remote_for
from launcher.processes.ssh import Ssh

# Runs the command behind `--` here, or fails as srun does, by the node's name.
SRUN = """#!/bin/sh
for word; do case "$word" in --nodelist=*) node=${word#--nodelist=};; esac; done
while [ "$1" != -- ]; do shift; done; shift
case "$node" in
  down) echo "srun: error: Unable to create step for job 5: Requested node configuration is not available" >&2; exit 1;;
  gone) echo "srun: error: Application launch failed: Communication connection failure" >&2; exit 233;;
  mute) exit 0;;
esac
exec "$@"
"""


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Srun:
    path = tmp_path / "srun"
    path.write_text(SRUN)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Srun()


def test_words_and_exit_codes_arrive(srun: Srun) -> None:
    words = ["printf", "%s|", "a b", "$HOME", "it's", '"', ";exit 9", ""]
    answers = srun.run({"n1": words, "n2": ["sh", "-c", "echo said; echo why >&2; exit 7"], "n3": ["true"]}, 20)
    assert (answers["n1"].returncode, answers["n1"].stdout) == (0, "a b|$HOME|it's|\"|;exit 9||")
    assert (answers["n2"].returncode, answers["n2"].stdout, answers["n2"].stderr) == (7, "said\n", "why\n")
    assert (answers["n3"].returncode, answers["n3"].stdout) == (0, "")
    assert all(answer.unreachable is None for answer in answers.values())


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("down", "Requested node configuration is not available; look at the node: scontrol show node down"),
        ("gone", "Application launch failed: Communication connection failure; look at the node"),
        ("mute", "srun ended with exit code 0; look at the node"),
    ],
)
def test_a_node_that_ran_nothing_is_unreachable(srun: Srun, node: str, words: str) -> None:
    """Also where srun returns 0."""
    answer = srun.run({node: ["true"]}, 20)[node]
    assert words in str(answer.unreachable) and answer.returncode not in (0, None)


def test_a_command_past_its_deadline_has_no_code(srun: Srun) -> None:
    answer = srun.run({"n1": ["sleep", "60"]}, 0.5)["n1"]
    assert answer.returncode is None and answer.unreachable is None


def test_steps_are_used_inside_a_job_alone(srun: Srun, tmp_path: Path) -> None:
    path = f"{tmp_path}:/usr/bin:/bin"
    assert isinstance(remote_for({"SLURM_JOB_ID": "5", "PATH": path}), Srun)
    assert isinstance(remote_for({"PATH": path}), Ssh)
    assert isinstance(remote_for({"SLURM_JOB_ID": "5", "PATH": "/nowhere"}), Ssh)
