"""Watching one attempt: start mpirun, show progress, pass on a wish to stop, leave nothing running."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType

from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import AttemptDir, Outcome, RankStatus, RunDir, Summary
from launcher.plan import LaunchPlan
from launcher.processes import kill_session, start_tied, workers_of
from launcher.progress import Progress
from launcher.verdict import Verdict, judge

_POLL_S = 0.2
# Open MPI ends the other ranks within 4 s of a failure; an mpirun that has not is stuck.
_FAILED_GRACE_S = 15.0
_TERM_GRACE_S = 5.0
_LATE_RECORDS_S = 2.0
_ORPHANS_S = 5.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class StopRequest:
    """Set by signal handlers. A second signal means "now", a third "at once"."""

    count: int = 0
    first_s: float = 0.0

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self.first_s = time.monotonic()


def due_signal(waited_s: float, grace_s: float, requests: int) -> signal.Signals:
    """What mpirun should have got `waited_s` after the first of `requests` wishes to stop.

    USR1 makes trainers checkpoint and leave at the next step; TERM and KILL are for those that do not.
    """
    if waited_s >= grace_s + _TERM_GRACE_S or requests >= 3:
        return signal.SIGKILL
    if waited_s >= grace_s or requests >= 2:
        return signal.SIGTERM
    return signal.SIGUSR1


def supervise(plan: LaunchPlan, env: Mapping[str, str], progress: Progress) -> Verdict:
    """Run `plan` to its end in this process's main thread. Raises OSError when mpirun cannot be started."""
    run = RunDir(plan.run_dir)
    attempt = run.attempt(plan.attempt)
    attempt.root.mkdir(parents=True, exist_ok=True)
    with _stop_requests() as stop, attempt.launcher_log.open("xb") as log:
        mpirun = start_tied(plan.argv, {**env, **plan.environment}, log, subprocess.STDOUT)
        try:
            _watch(plan, attempt, mpirun, stop, progress)
        finally:
            kill_session(mpirun)
            _end_orphans(plan)
            progress.close()
    verdict = judge(
        hosts={place.rank: place.host for place in plan.ranks},
        outcomes=_final_outcomes(plan, attempt),
        summary=Summary.read(run.summary_json),
        mpirun_returncode=mpirun.returncode,
        stopped=stop.count > 0,
    )
    return replace(verdict, stopped=stop.count > 0)


@contextmanager
def _stop_requests() -> Iterator[StopRequest]:
    stop = StopRequest()
    before = {number: signal.signal(number, stop.receive) for number in _STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(
    plan: LaunchPlan,
    attempt: AttemptDir,
    mpirun: subprocess.Popen[bytes],
    stop: StopRequest,
    progress: Progress,
) -> None:
    """Return when mpirun has ended or must be killed."""
    sent: signal.Signals | None = None
    deadline_s: float | None = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            mpirun.wait(timeout=_POLL_S)
        progress.update(_statuses(plan, attempt))
        if mpirun.returncode is not None:
            return
        now_s = time.monotonic()
        if stop.count:
            due = due_signal(now_s - stop.first_s, plan.stop_grace_s, stop.count)
            if due is signal.SIGKILL:
                return
            if due is not sent:
                mpirun.send_signal(due)
                sent = due
        if deadline_s is None and (grace_s := _end_grace_s(plan, attempt)) is not None:
            deadline_s = now_s + grace_s
        if deadline_s is not None and now_s >= deadline_s:
            return


def _end_grace_s(plan: LaunchPlan, attempt: AttemptDir) -> float | None:
    """How long the job may go on, now that some rank has ended for another reason than success."""
    codes = {outcome.returncode for outcome in _outcomes(plan, attempt).values()} - {0}
    if not codes:
        return None
    return plan.stop_grace_s if codes == {ExitCode.PREEMPTED} else _FAILED_GRACE_S


def _statuses(plan: LaunchPlan, attempt: AttemptDir) -> dict[int, RankStatus]:
    found = {place.rank: RankStatus.read(attempt.status(place.rank)) for place in plan.ranks}
    return {rank: status for rank, status in found.items() if status is not None}


def _outcomes(plan: LaunchPlan, attempt: AttemptDir) -> dict[int, Outcome]:
    found = {place.rank: Outcome.read(attempt.outcome(place.rank)) for place in plan.ranks}
    return {rank: outcome for rank, outcome in found.items() if outcome is not None}


def _final_outcomes(plan: LaunchPlan, attempt: AttemptDir) -> dict[int, Outcome]:
    """All outcomes; those of other hosts may take a moment to show on a shared file system."""
    deadline_s = time.monotonic() + (_LATE_RECORDS_S if len(plan.hosts) > 1 else 0.0)
    while True:
        outcomes = _outcomes(plan, attempt)
        if len(outcomes) == len(plan.ranks) or time.monotonic() >= deadline_s:
            return outcomes
        time.sleep(_POLL_S)


def _end_orphans(plan: LaunchPlan) -> None:
    """Kill ranks on this host that outlived mpirun, and wait until they are gone."""
    deadline_s = time.monotonic() + _ORPHANS_S
    while (pids := workers_of(plan.run_dir, plan.attempt)) and time.monotonic() < deadline_s:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S / 4)
