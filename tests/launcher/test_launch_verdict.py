"""Verdicts from the ranks' records, and when which signal is due: no process is started here."""

import signal

import pytest

from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import Outcome, Summary
from launcher.supervise import due_signal
from launcher.verdict import ended, judge

HOSTS = {0: "n1", 1: "n2"}
SUMMARY = Summary(
    steps=9,
    samples_seen=36,
    final_loss=0.1,
    seconds=1.0,
    retrieval=None,
    report="r",
    samples="s",
    weights="w",
)


def records(*codes: int | None) -> dict[int, Outcome]:
    """Outcomes of ranks 0, 1 ... in the order of their ends: a later argument ended later."""
    return {
        rank: Outcome(rank=rank, hostname=f"n{rank + 1}", pid=1, returncode=code, last_step=7, ended_unix_s=rank)
        for rank, code in enumerate(codes)
        if code is not None
    }


@pytest.mark.parametrize(
    ("codes", "complete", "mpirun", "stopped", "expected", "words", "rank"),
    [
        ((0, 0), True, 0, False, ExitCode.OK, "", None),
        ((0, -11), True, 139, False, ExitCode.OK, "SIGSEGV after the run was complete", None),
        ((0, 0), True, 0, True, ExitCode.OK, "", None),
        ((1, -15), False, 1, False, ExitCode.FAILED, "n1 ended with exit code 1 after step 7", 0),
        ((-9, -15), False, 137, False, ExitCode.FAILED, "n1 ended with SIGKILL after step 7", 0),
        ((None, 3), False, 3, False, ExitCode.FAILED, "rank 1 on host n2 ended with exit code 3", 1),
        ((76, 76), False, 76, False, ExitCode.DIVERGED, "exit code 76", 0),
        ((2, None), False, 2, False, ExitCode.BAD_CONFIG, "exit code 2", 0),
        ((75, 75), False, 75, True, ExitCode.PREEMPTED, "stopped after step 7, checkpoint saved", None),
        ((75, -15), False, 75, True, ExitCode.PREEMPTED, "checkpoint saved", None),
        ((75, -15), False, 75, False, ExitCode.PREEMPTED, "checkpoint saved", None),
        ((75, None), False, 75, False, ExitCode.PREEMPTED, "checkpoint saved", None),
        ((-15, 75), False, 143, False, ExitCode.FAILED, "rank 0 on host n1 ended with SIGTERM", 0),
        ((-10, 143), False, 1, True, ExitCode.PREEMPTED, "without a new checkpoint", None),
        ((None, None), False, 1, True, ExitCode.PREEMPTED, "stopped after step 0 without", None),
        ((75, 1), False, 75, True, ExitCode.FAILED, "rank 1 on host n2 ended with exit code 1", 1),
        ((-11, 75), False, 139, True, ExitCode.FAILED, "rank 0 on host n1 ended with SIGSEGV", 0),
        ((0, 0), False, 0, False, ExitCode.FAILED, "the run is not complete", 0),
        ((0, None), False, 0, False, ExitCode.FAILED, "(exit code 0) and left no account of rank 1", None),
        ((None, None), False, -9, False, ExitCode.FAILED, "(SIGKILL) and left no account of rank 0", None),
    ],
)  # fmt: skip
def test_verdicts(codes, complete, mpirun, stopped, expected, words, rank):
    verdict = judge(HOSTS, records(*codes), SUMMARY if complete else None, mpirun, stopped)
    assert verdict.exit_code is expected
    assert words in verdict.text and bool(words) == bool(verdict.text)
    assert verdict.rank == rank


def test_ended_names_signals():
    assert [ended(code) for code in (0, 3, -9, -99)] == ["exit code 0", "exit code 3", "SIGKILL", "signal 99"]


@pytest.mark.parametrize(
    ("waited_s", "requests", "expected"),
    [
        (0.0, 1, signal.SIGUSR1),
        (59.9, 1, signal.SIGUSR1),
        (60.0, 1, signal.SIGTERM),
        (65.0, 1, signal.SIGKILL),
        (0.1, 2, signal.SIGTERM),
        (0.1, 3, signal.SIGKILL),
    ],
)
def test_force_grows_with_time_and_impatience(waited_s, requests, expected):
    assert due_signal(waited_s, 60.0, requests) is expected
