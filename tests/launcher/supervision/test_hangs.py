"""Ranks that hang, wait or lag: what the launcher sees, whom it blames, and what it leaves in the logs."""

import json
import shutil
import signal
from typing import get_args

import pytest

from launcher.cluster.supervision import StragglerSettings, Timeouts
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import AttemptDir, Outcome, Phase, RankStatus, StackDump
from launcher.records.rank_files import AttemptFiles, Beat
from launcher.supervision.failure import Failure
from launcher.supervision.hangs import TIMEOUT_OF, Hang, find_hang, find_suspect
from launcher.supervision.stragglers import StragglerWatch, slow_ranks

TIMEOUTS = Timeouts(start_s=10, compile_s=100, step_s=5)


def status(rank: int = 0, phase: Phase = "training", step: int = 7, **more) -> RankStatus:
    values = {"hostname": "n", "pid": 1, "total_steps": 9, "samples_seen": 0, "updated_unix_s": 0.0}
    return RankStatus(rank=rank, phase=phase, step=step, **values, **more)


def beats(*waiting: bool, beat_s: float = 50.0) -> dict[int, Beat]:
    return {rank: Beat(status(rank, waiting=each), beat_s, 40.0) for rank, each in enumerate(waiting)}


def stacks(**states: str) -> dict[int, StackDump]:
    return {int(name[1:]): StackDump(rank=int(name[1:]), state=state) for name, state in states.items()}


def test_every_phase_has_its_timeout():
    assert set(TIMEOUT_OF) == set(get_args(Phase))
    assert set(TIMEOUT_OF.values()) == set(Timeouts.model_fields)


def test_a_hang_is_a_rank_over_the_time_of_its_phase():
    def found(now_s: float, running=(0, 1), **phases: Phase) -> Hang | None:
        seen = {int(name[1:]): Beat(status(phase=phase), 20.0, 20.0) for name, phase in phases.items()}
        return find_hang(TIMEOUTS, seen, running, started_s=0.0, now_s=now_s)

    assert found(9.9) is None
    assert found(10.1).key == "start_s"  # no status at all
    assert found(24.9, r0="training", r1="training") is None
    assert found(25.1, r0="training", r1="compiling") == Hang(0, "training", pytest.approx(5.1), "step_s")
    assert found(25.1, r0="training", r1="compiling", running=(1,)) is None  # rank 0 has ended
    assert found(120.1, r0="compiling", r1="training").rank == 1  # the one that is furthest over its time


@pytest.mark.parametrize(
    ("seen", "answers", "rank", "words"),
    [
        (beats(True, False, True), stacks(r0="S", r1="S", r2="S"), 1, "in no collective"),
        (beats(True, True, True), stacks(r0="S", r1="T", r2="S"), 1, "stopped"),
        (beats(True, True, True), stacks(r0="S", r1="S", r2="D"), 2, "in the kernel"),
        (beats(False, True, True), stacks(r0="S", r1="S"), 2, "host did not answer"),
        (beats(False, True), stacks(r0="S", r1="S", r2="S"), 2, "not begun"),
        (beats(True, True) | {2: beats(True, True, True, beat_s=9.0)[2]}, {}, 2, "no longer tells"),
        (beats(True, True, True), stacks(r0="S", r1="S", r2="S"), 0, "no rank stands out"),
    ],
)
def test_the_clearest_sign_names_the_culprit(seen, answers, rank, words):
    hang = Hang(0, "training", 10.0, "step_s")
    suspect = find_suspect(hang, seen, range(3), answers)
    assert suspect.rank == rank and words in suspect.sign


def test_files_are_read_once_and_progress_is_a_new_phase_or_step(tmp_path, monkeypatch):
    attempt = AttemptDir(tmp_path)
    files = AttemptFiles(attempt)
    reads = []
    read = RankStatus.read
    monkeypatch.setattr(RankStatus, "read", lambda path: reads.append(path) or read(path))
    status(3, step=1).write(attempt.status(3))
    attempt.log(3).write_text("twelve bytes")
    files.look(1.0)
    files.look(2.0)
    assert len(reads) == 1
    assert (files.beats[3].beat_s, files.beats[3].progress_s, files.log_bytes) == (1.0, 1.0, {3: 12})
    status(3, step=1, waiting=True).write(attempt.status(3))
    files.look(3.0)
    assert (files.beats[3].beat_s, files.beats[3].progress_s) == (3.0, 1.0)
    status(3, step=2).write(attempt.status(3))
    files.look(4.0)
    assert files.beats[3].progress_s == 4.0
    attempt.status(3).write_text("")  # as a host that lost its power leaves it
    files.look(5.0)
    assert files.beats[3].beat_s == 4.0
    outcome = Outcome(rank=3, hostname="n", pid=1, returncode=0, last_step=2, ended_unix_s=0.0)
    outcome.write(attempt.outcome(3))
    files.look(6.0)
    shutil.rmtree(tmp_path)  # or a shared file system that fails for a moment
    files.look(7.0)
    assert files.outcomes == {3: outcome} and files.beats[3].beat_s == 4.0


def test_a_straggler_stands_out_by_ratio_and_by_spread():
    settings = StragglerSettings()
    assert slow_ranks({0: 1.0}, settings) == []
    assert [each.rank for each in slow_ranks({0: 1.0, 1: 1.31}, settings)] == [1]
    assert slow_ranks({0: 1.0, 1: 1.29}, settings) == []
    even = {rank: 1.0 + 0.01 * (rank % 3) for rank in range(16)}
    assert [each.rank for each in slow_ranks({**even, 5: 1.5, 6: 1.5, 7: 1.5}, settings)] == [5, 6, 7]
    # 0.5 to 1.5 evenly: their sigma, from the median absolute deviation of 0.25, is 0.37, so 1.9 is within 3 of 1.0.
    wide = {rank: 0.5 + rank / 100 for rank in range(101)}
    assert slow_ranks({**wide, 200: 1.9}, settings) == []
    assert [each.rank for each in slow_ranks({**wide, 200: 2.3}, settings)] == [200]


def test_a_straggler_is_one_after_three_windows_in_a_row():
    watch = StragglerWatch(StragglerSettings(window_s=30))

    def window(number: int, slow_s: float) -> bool:
        own.update({0: own[0] + 10.0, 1: own[1] + 10 * slow_s})
        statuses = {rank: status(rank, timed_steps=10 * number, own_seconds=own[rank]) for rank in own}
        return watch.update(statuses, 2, 31.0 * number)

    own = {0: 0.0, 1: 0.0}
    changes = [window(number, slow) for number, slow in enumerate((1, 2, 2, 1, 2, 2, 2, 2, 1, 1))]
    assert changes == [False] * 6 + [True, False, True, False]
    assert watch.stragglers == {}
    assert not watch.update({0: status(0)}, 2, 1e6)  # not all ranks have told


@pytest.mark.parametrize(("fault", "words"), [("busy", "in no collective"), ("frozen", "stopped")])
def test_a_rank_that_hangs_is_named_after_all_have_told_their_stacks(bench, fault, words):
    result = bench.launch(f"fault={fault}", "cluster.supervision.timeouts.step_s=3", "steps=1000")
    assert result.returncode == ExitCode.FAILED, result.stderr
    attempt = bench.run.attempt(1)
    failure = Failure.read(attempt.failure_json)
    assert failure is not None
    assert (failure.kind, failure.rank, failure.last_step) == ("hang", 1, 3)
    assert words in failure.cause
    assert "allreduce" in attempt.log(0).read_text() or "in train" in attempt.log(0).read_text()
    assert (fault == "busy") == ("in work_without_end" in str(failure).splitlines()[2])
    assert ("in work_without_end" in attempt.log(1).read_text()) == (fault == "busy")
    assert bench.workers() == []


def test_a_slow_rank_is_reported_and_lives(bench):
    window = '{"window_s": 0.6, "sigmas": 3, "slower_ratio": 0.3, "windows_in_a_row": 2}'
    options = ("fault=slow", "steps=28", "step_s=0.01", f"cluster.supervision.stragglers={window}")
    result = bench.launch(*options)
    assert result.returncode == ExitCode.OK, result.stderr
    assert "vpred-launch: rank 1 on host localhost is slow: " in result.stderr
    (slow,) = json.loads(bench.run.attempt(1).stragglers_json.read_text())["ranks"]
    assert slow["rank"] == 1
    assert slow["own_step_seconds"] > 5 * slow["others_step_seconds"]


def test_a_wish_for_a_checkpoint_reaches_the_ranks_and_the_run_goes_on(bench):
    launcher = bench.start_training("save_every=0")  # so that the only checkpoint is the one asked for
    launcher.send_signal(signal.SIGUSR2)
    paths = [bench.run.attempt(1).status(rank) for rank in (0, 1)]
    bench.wait_until(lambda: all(RankStatus.read(path).checkpoint_step is not None for path in paths))
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGUSR1)
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == ExitCode.PREEMPTED, stderr
