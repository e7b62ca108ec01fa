"""Verdicts from the ranks' records, and when which signal is due: no process is started here."""

import signal
from itertools import product
from pathlib import Path

import pytest

from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import AttemptDir, Outcome, RankStatus, Summary
from launcher.planning.mpirun import lost_host
from launcher.supervision.hangs import Hang, Suspect
from launcher.supervision.next_action import ENDING, Situation, next_action
from launcher.supervision.stop_requests import StoppedBeforeRanksError, signal_to_send, stop_requests
from launcher.supervision.verdict import Evidence, ended, judge

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


def evidence(outcomes, summary=None, mpirun=0, stopped=False, statuses=None, **more):
    attempt = AttemptDir(Path("/run/attempts/0001"))
    return Evidence(HOSTS, statuses or {}, outcomes, summary, mpirun, stopped, attempt, **more)


@pytest.mark.parametrize(
    ("codes", "complete", "mpirun", "stopped", "expected", "words", "rank"),
    [
        ((0, 0), True, 0, False, ExitCode.OK, "", None),
        ((0, -11), True, 139, False, ExitCode.OK, "SIGSEGV after the run was complete", None),
        ((0, 0), True, 0, True, ExitCode.OK, "", None),
        ((1, -15), False, 1, False, ExitCode.FAILED, "n1 ended with exit code 1 after step 7", 0),
        ((-9, -15), False, 137, False, 137, "n1 ended with SIGKILL after step 7", 0),
        ((-40, -15), False, 168, False, 168, "n1 ended with signal 40 after step 7", 0),
        ((None, 3), False, 3, False, ExitCode.FAILED, "rank 1 on host n2 ended with exit code 3", 1),
        ((76, 76), False, 76, False, ExitCode.DIVERGED, "exit code 76", 0),
        ((2, None), False, 2, False, ExitCode.BAD_CONFIG, "exit code 2", 0),
        ((75, 75), False, 75, True, ExitCode.PREEMPTED, "stopped after step 7, checkpoint saved", None),
        ((75, -15), False, 75, True, ExitCode.PREEMPTED, "checkpoint saved", None),
        ((75, -15), False, 75, False, ExitCode.PREEMPTED, "checkpoint saved", None),
        ((75, None), False, 75, False, ExitCode.PREEMPTED, "checkpoint saved", None),
        ((-15, 75), False, 143, False, 143, "rank 0 on host n1 ended with SIGTERM", 0),
        ((-10, 143), False, 1, True, ExitCode.PREEMPTED, "without a new checkpoint", None),
        ((None, None), False, 1, True, ExitCode.PREEMPTED, "stopped after step 0 without", None),
        ((75, 1), False, 75, True, ExitCode.FAILED, "rank 1 on host n2 ended with exit code 1", 1),
        ((-11, 75), False, 139, True, 139, "rank 0 on host n1 ended with SIGSEGV", 0),
        ((0, 0), False, 0, False, ExitCode.FAILED, "the run is not complete", 0),
        ((0, None), False, 0, False, ExitCode.FAILED, "rank 1 on host n2 left no account", 1),
        ((None, None), False, -9, False, ExitCode.FAILED, "rank 0 on host n1 left no account", 0),
    ],
)  # fmt: skip
def test_verdicts(codes, complete, mpirun, stopped, expected, words, rank):
    verdict = judge(evidence(records(*codes), SUMMARY if complete else None, mpirun, stopped))
    assert verdict.exit_code == expected
    assert words in verdict.text and bool(words) == bool(verdict.text)
    assert (None if verdict.failure is None else verdict.failure.rank) == rank


def test_a_rank_that_waited_or_blames_another_is_not_first():
    codes = records(1, 1)  # rank 0 ended first by its host's clock
    for innocent in ({"told_to_stop": True}, {"waiting": True}):
        verdict = judge(evidence({**codes, 0: codes[0].model_copy(update=innocent)}))
        assert verdict.failure.rank == 1
    assert judge(evidence(codes, blaming_a_peer=frozenset({0}))).failure.rank == 1
    assert judge(evidence(codes)).failure.rank == 0


@pytest.mark.parametrize("followed", [{"told_to_stop": True}, {"waiting": True}])
def test_a_rank_that_vanished_with_its_shim_comes_before_a_follower(followed):
    (survivor,) = records(-15).values()
    outcomes = {0: survivor.model_copy(update=followed)}
    verdict = judge(evidence(outcomes, mpirun=1))
    assert (verdict.exit_code, verdict.failure.kind, verdict.failure.host) == (ExitCode.FAILED, "lost", "n2")
    assert judge(evidence(outcomes, mpirun=1, stopped=True)).exit_code == ExitCode.PREEMPTED
    assert judge(evidence({0: survivor}, mpirun=1)).failure.rank == 0
    failing = {0: survivor.model_copy(update={**followed, "returncode": 1})}
    assert judge(evidence(failing, mpirun=1, stopped=True)).failure.rank == 0


# As Open MPI 5.0.11 writes them; 4.1.4 writes the first with ORTE for PRTE and its own ids.
LOST_DAEMON = """\
PRTE has lost communication with a remote daemon.

  HNP daemon   : [prterun-n1-147@0,0] on node n1
  Remote daemon: [prterun-n1-147@0,1] on node n2

This is usually due to either a failure of the TCP network
"""
LOST_SSH = """\
Connection to n2 closed by remote host.
A daemon failed to report back after being spawned. This could
be due to several factors, including inability to find the

  Local host:    n1
  Remote host:   n2
  Daemon exit status: 255
"""


@pytest.mark.parametrize("said", [LOST_DAEMON, LOST_SSH])
def test_a_host_that_mpirun_lost_is_blamed_before_the_ranks_it_killed(said):
    assert lost_host(said) == "n2"
    told = records(0, -15)[1].model_copy(update={"told_to_stop": True})
    for outcomes in ({}, {1: told}):  # rank 0 and its shim were killed
        failure = judge(evidence(outcomes, mpirun=1, lost_host=lost_host(said))).failure
        assert (failure.kind, failure.rank, failure.host) == ("lost", 1, "n2")
    hang = Hang(rank=0, phase="training", waited_s=5.0, key="step_s")
    assert judge(evidence({}, mpirun=1, hang=hang, lost_host="n2")).failure.rank == 1
    raised = records(1)
    assert judge(evidence(raised, mpirun=1, lost_host="n2")).failure.rank == 0  # of its own accord, and before
    own_name = RankStatus(rank=1, hostname="node-b", pid=1, phase="training", step=5, total_steps=9, samples_seen=20,
                          updated_unix_s=0.0)  # fmt: skip
    failure = judge(evidence({}, mpirun=1, lost_host="node-b", statuses={1: own_name})).failure
    assert (failure.rank, failure.last_step) == (1, 5)
    assert judge(evidence({}, mpirun=1, lost_host="elsewhere")).failure.rank == 0
    assert lost_host("mpirun noticed that process rank 1 exited on signal 9") is None


def test_progress_is_known_though_ranks_died_with_their_shims():
    status = RankStatus(rank=0, hostname="n1", pid=1, phase="training", step=12, total_steps=20, samples_seen=48,
                        updated_unix_s=0.0)  # fmt: skip
    verdict = judge(evidence({}, mpirun=-9, stopped=True, statuses={0: status}))
    assert verdict.text.startswith("stopped after step 12 without a new checkpoint")


@pytest.mark.parametrize("followed", [{"told_to_stop": True}, {"waiting": True}])
def test_a_rank_that_left_as_if_done_comes_before_one_that_only_followed(followed):
    killed, left = records(-15, 0).values()
    outcomes = {0: killed.model_copy(update=followed), 1: left}
    verdict = judge(evidence(outcomes, mpirun=1))
    assert (verdict.exit_code, verdict.failure.kind, verdict.failure.rank) == (ExitCode.FAILED, "incomplete", 1)
    assert judge(evidence(outcomes, mpirun=1, stopped=True)).exit_code == ExitCode.PREEMPTED
    assert judge(evidence({0: killed, 1: left}, mpirun=1)).failure.rank == 0
    told = left.model_copy(update={"told_to_stop": True})
    assert judge(evidence({**outcomes, 1: told}, mpirun=1)).failure.rank == 0


def test_a_rank_killed_while_it_waited_comes_before_the_vanished():
    (killed,) = records(-9).values()
    outcomes = {0: killed.model_copy(update={"waiting": True})}
    verdict = judge(evidence(outcomes, mpirun=137))  # rank 1 and its shim were killed by mpirun
    assert (verdict.exit_code, verdict.failure.kind, verdict.failure.rank) == (137, "signal", 0)


@pytest.mark.parametrize("code", [-15, -9])
def test_a_rank_whose_lease_ended_comes_before_those_beside_it(code):
    (ended_by_shim,) = records(code).values()
    outcomes = {0: ended_by_shim.model_copy(update={"lease_is_over": True, "waiting": True})}
    failure = judge(evidence(outcomes, mpirun=-9)).failure
    assert (failure.rank, failure.returncode) == (0, code)
    assert failure.cause.endswith("no sign of life of the launcher for launcher.lease_s")


def test_a_kill_that_was_not_ours_and_one_for_want_of_memory():
    (killed,) = records(-9).values()
    assert "probably" in judge(evidence({0: killed})).failure.cause
    counted = killed.model_copy(update={"out_of_memory": "oom_kill in memory.events rose from 0 to 1"})
    failure = judge(evidence({0: counted})).failure
    assert failure.kind == "out_of_memory" and "rose from 0 to 1" in failure.cause


def test_a_hang_is_the_blamed_ranks():
    hang = Hang(rank=0, phase="training", waited_s=901.0, key="step_s")
    verdict = judge(evidence(records(None, -15), hang=hang, suspect=Suspect(1, "its process is stopped", 7)))
    assert (verdict.exit_code, verdict.failure.kind, verdict.failure.rank) == (ExitCode.FAILED, "hang", 1)
    assert "supervision.timeouts.step_s" in verdict.failure.hint


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
    assert signal_to_send(waited_s, 60.0, requests) is expected


USR1, TERM, KILL = signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL


@pytest.mark.parametrize(
    ("seen", "action"),
    [
        (Situation(), "wait"),
        (Situation(due_signal=USR1), "send_signal"),
        (Situation(due_signal=USR1, sent_signal=USR1), "wait"),
        (Situation(due_signal=TERM, sent_signal=USR1), "send_signal"),
        (Situation(due_signal=USR1, sent_signal=USR1, was_early=True), "wait"),
        (Situation(due_signal=USR1, sent_signal=USR1, was_early=True, all_have_begun=True), "send_signal"),
        (Situation(due_signal=TERM, sent_signal=USR1, is_hung=True, is_late=True), "send_signal"),
        (Situation(due_signal=KILL, sent_signal=TERM, is_hung=True), "kill"),
        (Situation(is_hung=True), "end_hang"),
        (Situation(is_hung=True, is_late=True, wants_checkpoint=True, all_have_begun=True), "end_hang"),
        (Situation(due_signal=USR1, sent_signal=USR1, is_hung=True), "wait"),
        (Situation(is_late=True), "end_late"),
        (Situation(due_signal=USR1, sent_signal=USR1, is_late=True), "end_late"),
        (Situation(wants_checkpoint=True), "wait"),
        (Situation(wants_checkpoint=True, all_have_begun=True), "ask_checkpoint"),
        (Situation(wants_checkpoint=True, all_have_begun=True, due_signal=USR1), "send_signal"),
        (Situation(wants_checkpoint=True, all_have_begun=True, due_signal=USR1, sent_signal=USR1), "wait"),
    ],
)
def test_what_is_done_next_follows_from_what_is_seen(seen, action):
    assert next_action(seen) == action


def test_nothing_that_ends_an_attempt_is_done_while_all_is_well():
    """Whatever else is seen: without a hang, a late rank and a last signal the attempt goes on."""
    for due, sent, wants, begun in product((None, USR1, TERM), (None, USR1, TERM), (False, True), (False, True)):
        seen = Situation(due_signal=due, sent_signal=sent, wants_checkpoint=wants, all_have_begun=begun)
        assert next_action(seen) not in ENDING


def test_signals_of_a_job_are_one_request():
    with stop_requests(in_job=True) as stop:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.count == 1
        signal.raise_signal(signal.SIGINT)
        assert stop.count == 2


def test_a_stop_before_the_ranks_interrupts():
    with stop_requests(ranks_may_run=False) as stop:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            with pytest.raises(StoppedBeforeRanksError):
                signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGINT)
        assert caught.type is KeyboardInterrupt
        stop.ranks_may_run = True
        signal.raise_signal(signal.SIGTERM)
        assert stop.count == 5


SRUN_DOWN = "srun: error: Node failure on n2\nsrun: error: h1: task 0: Killed\n"
SRUN_LAUNCH = "srun: error: Task launch for StepId=5.6 failed on node n2: Communication connection failure\n"
SRUN_SILENT = """srun: Job step aborted: Waiting up to 12 seconds for job step to finish.
srun: error: n1: tasks 0-1: Killed
srun: error: n3: task 4: Killed
srun: error: Timed out waiting for job step to complete
"""


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        (SRUN_DOWN, "n2"),
        (SRUN_LAUNCH, "n2"),
        (SRUN_SILENT, "n2"),
        (SRUN_SILENT.replace("task 4", "tasks 2-3,4"), None),
        (SRUN_SILENT.replace("srun: error: Timed out", "Timed out"), None),
        ("srun: error: n1: task 0: Exited with exit code 1\n", None),
    ],
)
def test_sruns_words_name_the_lost_node(said, lost):
    assert lost_host(said, ["n1", "n1", "n2", "n2", "n3"]) == lost


def test_a_node_that_slurm_lost_is_blamed():
    reacted = {0: records(14)[0].model_copy(update={"waiting": True})}
    failure = judge(evidence(reacted, mpirun=1, lost_host="n2", starter="srun")).failure
    assert (failure.rank, failure.cause) == (1, "Slurm lost the node n2")


def test_what_signals_ask_for_and_nohup_stays_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR2)
            assert (stop.count, stop.checkpoints) == (0, 1)
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)
            assert (stop.count, stop.checkpoints) == (2, 1)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.count == 1
    finally:
        signal.signal(signal.SIGHUP, before)
