"""Watches one attempt: starts mpirun, shows progress, passes requests on, ends what hangs, leaves nothing running."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.contract.run_dir import AttemptDir, Outcome, Record, RunDir, Summary
from launcher.planning.mpirun import lost_host, starting_place
from launcher.planning.plan import LaunchPlan
from launcher.planning.start_command import HOSTFILE
from launcher.processes.tied import kill_session, start_tied, workers_of
from launcher.records.event_log import EventLog, EventName, Plain
from launcher.records.log_stream import LogStream
from launcher.records.rank_files import AttemptFiles
from launcher.records.straggler_record import Stragglers
from launcher.supervision.failure import blames_peer, read_log, tail
from launcher.supervision.hangs import Hang, Suspect, find_hang, find_suspect
from launcher.supervision.next_action import ENDING, Action, Situation, next_action
from launcher.supervision.progress import Progress
from launcher.supervision.stop_requests import StopRequest, signal_to_send
from launcher.supervision.stragglers import StragglerWatch
from launcher.supervision.verdict import Evidence, Verdict, judge

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_LOOK_S = 0.5
# Open MPI ends the other ranks within 4 s of a failure; an mpirun that has not is stuck.
_FAILED_GRACE_S = 15.0
_TERM_GRACE_S = 5.0
_LATE_RECORDS_S = 2.0
_ORPHANS_S = 5.0
# Shims look once a second, and a shared file system may show a new file up to a minute late.
_STACKS_S = 60.0


def supervise(
    plan: LaunchPlan,
    env: Mapping[str, str],
    progress: Progress,
    stop: StopRequest,
    events: EventLog,
    streamed: Collection[int] = (),
) -> Verdict:
    """Run `plan` to its end in this process's main thread. A failure is saved in the attempt's directory.

    stop: from stop_requests(), whose block surrounds this and other attempts
    streamed: ranks whose logs are shown as they grow

    Raises OSError: when mpirun cannot be started.
    """
    run = RunDir(plan.run_dir)
    attempt = run.attempt(plan.attempt)
    attempt.root.mkdir(parents=True, exist_ok=True)
    if stop.count:
        return Verdict(ExitCode.PREEMPTED, "stopped before the ranks were started; the same command resumes")
    watch = _Watch(plan, attempt, progress, stop, events, streamed)
    with attempt.launcher_log.open("xb") as log, starting_place(env) as (folder, variables):
        (folder / HOSTFILE).symlink_to(run.hostfile)
        mpirun = start_tied(plan.argv, {**variables, **plan.environment}, folder, log, subprocess.STDOUT)
        try:
            watch.until_it_ends(mpirun)
        finally:
            watch.kill(mpirun)
            _end_orphans(plan)
            watch.close()
    verdict = judge(
        Evidence(
            hosts={place.rank: place.host for place in plan.ranks},
            statuses=watch.files.statuses,
            outcomes=watch.files.outcomes,
            summary=Summary.read(run.summary_json),
            mpirun_returncode=mpirun.returncode,
            stopped=stop.count > 0,
            attempt=attempt,
            blaming_a_peer=_blaming_a_peer(attempt, watch.files.outcomes),
            lost_host=lost_host(tail(attempt.launcher_log), [place.host for place in plan.ranks]),
            starter="srun" if plan.argv[0] == "srun" else "mpirun",
            hang=watch.hang,
            suspect=watch.suspect,
        )
    )
    if verdict.failure is not None:
        failure = read_log(verdict.failure)
        _keep(failure, attempt.failure_json)
        verdict = replace(verdict, failure=failure)
    return verdict


def _keep(record: Record, path: Path) -> None:
    """Write `record`. A full disk may be the failure it records, and must not leave the ranks unwatched."""
    try:
        record.write(path)
    except OSError as error:
        logger.warning("%s: cannot be written (%s)", path, error.strerror)


def _blaming_a_peer(attempt: AttemptDir, outcomes: Mapping[int, Outcome]) -> frozenset[int]:
    """Return the ranks that ended by themselves and whose log says that another rank was at fault."""
    ended = (each for each in outcomes.values() if each.returncode > 0 and not each.told_to_stop)
    return frozenset(each.rank for each in ended if blames_peer(attempt.log(each.rank)))


class _Watch:
    """Observes an attempt while it runs and acts on it."""

    def __init__(
        self,
        plan: LaunchPlan,
        attempt: AttemptDir,
        progress: Progress,
        stop: StopRequest,
        events: EventLog,
        streamed: Collection[int],
    ) -> None:
        self.plan, self.attempt, self.progress, self._stop, self._events = plan, attempt, progress, stop, events
        self.files = AttemptFiles(attempt)
        self.hang: Hang | None = None
        self.suspect: Suspect | None = None
        self._hosts = {place.rank: place.host for place in plan.ranks}
        self._stream = LogStream(attempt, streamed)
        self._stragglers = StragglerWatch(plan.supervision.stragglers)
        self._started_s = self._looked_s = time.monotonic()
        self._sent: signal.Signals | None = None
        self._was_early = False
        self._checkpoints_asked = 0
        self._deadline_s: float | None = None

    def until_it_ends(self, mpirun: "subprocess.Popen[bytes]") -> None:
        """Return when mpirun has ended or must be killed (by `kill`)."""
        action: Action = "wait"
        while action not in ENDING and mpirun.poll() is None:
            time.sleep(_POLL_S)
            seen = self._situation(time.monotonic())
            action = next_action(seen)
            self._act(action, seen, mpirun)

    def _situation(self, now_s: float) -> Situation:
        if now_s >= self._looked_s + _LOOK_S:
            self._look(now_s)
        stop = self._stop
        due = signal_to_send(now_s - stop.first_s, self.plan.stop_grace_s, stop.count) if stop.count else None
        return Situation(
            due_signal=due,
            sent_signal=self._sent,
            was_early=self._was_early,
            is_hung=self.hang is not None,
            wants_checkpoint=stop.checkpoints > self._checkpoints_asked,
            all_have_begun=len(self.files.beats) == len(self._hosts),
            is_late=self._deadline_s is not None and now_s >= self._deadline_s,
        )

    def _act(self, action: Action, seen: Situation, mpirun: "subprocess.Popen[bytes]") -> None:
        if action == "send_signal" and seen.due_signal is not None:
            self._send(mpirun, seen.due_signal, self._requests())
            self._sent, self._was_early = seen.due_signal, not seen.all_have_begun
        elif action == "ask_checkpoint":
            self._checkpoints_asked = self._stop.checkpoints  # one checkpoint answers all requests so far
            mpirun.send_signal(signal.SIGUSR2)
            self._record("checkpoint_asked")
            self._note("asked the ranks for a checkpoint")
        elif action == "end_hang" and self.hang is not None:
            self._dump_stacks(mpirun, self.hang)
            self._terminate(mpirun, "a rank hangs")
        elif action == "end_late":
            self._terminate(mpirun, "a rank has ended, and mpirun did not end the others in time")

    def kill(self, mpirun: "subprocess.Popen[bytes]") -> None:
        """Send SIGKILL to mpirun and to what it started here, whether or not it still runs."""
        if mpirun.poll() is None:
            why = self._requests() if self._stop.count else "mpirun did not end by itself"
            self._record("signal_sent", signal="SIGKILL", why=why)
        kill_session(mpirun)

    def close(self) -> None:
        """Read the last records. Those of other hosts may appear late on a shared file system."""
        deadline_s = time.monotonic() + (_LATE_RECORDS_S if len(self.plan.hosts) > 1 else 0.0)
        while True:
            self._look(time.monotonic())
            if len(self.files.outcomes) == len(self.plan.ranks) or time.monotonic() >= deadline_s:
                break
            time.sleep(_POLL_S)
        for line in self._stream.rest():
            self.progress.line(line)
        self.progress.close()

    def _look(self, now_s: float) -> None:
        self._looked_s = now_s
        files = self.files
        files.look(now_s)
        for line in self._stream.lines(files.log_bytes):
            self.progress.line(line)
        self.progress.update(files.statuses)
        running = self._hosts.keys() - files.outcomes.keys()
        if self.hang is None:
            self.hang = find_hang(self.plan.supervision.timeouts, files.beats, running, self._started_s, now_s)
        if self._stragglers.update(files.statuses, len(self._hosts), now_s):
            self._tell_stragglers()
        if self._deadline_s is None and (grace_s := self._end_grace_s()) is not None:
            self._deadline_s = now_s + grace_s

    def _end_grace_s(self) -> float | None:
        """Return how long the job may go on, now that some rank has ended. None: no rank has ended."""
        codes = {outcome.returncode for outcome in self.files.outcomes.values()}
        if not codes:
            return None
        # Ranks leave together, after a barrier. When one left with success, the others follow or something is wrong.
        return self.plan.stop_grace_s if codes <= {ExitCode.OK, ExitCode.PREEMPTED} else _FAILED_GRACE_S

    def _dump_stacks(self, mpirun: "subprocess.Popen[bytes]", hang: Hang) -> None:
        """Have all ranks write their stacks to their logs, and name the suspect."""
        running = self._hosts.keys() - self.files.outcomes.keys()
        self._record(
            "hang_found",
            rank=hang.rank,
            host=self._hosts[hang.rank],
            phase=hang.phase,
            waited_s=hang.waited_s,
            timeout=f"supervision.timeouts.{hang.key}",
        )
        self._note(f"rank {hang.rank} made no progress for {hang.waited_s:.0f} s; asking all for stacks")
        with suppress(OSError):  # on a full disk there is no room for stacks either
            write_atomic(self.attempt.dump_stacks, "")
        deadline_s = time.monotonic() + _STACKS_S
        while time.monotonic() < deadline_s and mpirun.poll() is None and running - self.files.stacks.keys():
            time.sleep(_POLL_S)
            self._look(time.monotonic())
        suspect = self.suspect = find_suspect(hang, self.files.beats, running, self.files.stacks)
        self._record(
            "suspect_found",
            rank=suspect.rank,
            host=self._hosts[suspect.rank],
            sign=suspect.sign,
            last_step=suspect.last_step,
        )

    def _terminate(self, mpirun: "subprocess.Popen[bytes]", why: str) -> None:
        """Send SIGTERM and wait: only a living mpirun can end the ranks of other hosts."""
        self._send(mpirun, signal.SIGTERM, why)
        with suppress(subprocess.TimeoutExpired):
            mpirun.wait(timeout=_TERM_GRACE_S)

    def _send(self, mpirun: "subprocess.Popen[bytes]", number: signal.Signals, why: str) -> None:
        mpirun.send_signal(number)
        self._record("signal_sent", signal=number.name, why=why)

    def _requests(self) -> str:
        return f"{self._stop.count} request(s) to stop"

    def _record(self, event: EventName, **fields: Plain) -> None:
        self._events.write(event, self.plan.attempt, **fields)

    def _tell_stragglers(self) -> None:
        slow = tuple(self._stragglers.stragglers[rank] for rank in sorted(self._stragglers.stragglers))
        _keep(Stragglers(ranks=slow), self.attempt.stragglers_json)
        for each in slow:
            self._note(
                f"rank {each.rank} on host {self._hosts[each.rank]} is slow: {each.own_step_seconds:.3f} s of its own "
                f"per step, the others' median is {each.others_step_seconds:.3f} s"
            )
        if not slow:
            self._note("no rank is slow any more")

    def _note(self, text: str) -> None:
        # The prefix distinguishes these lines from the ranks' lines around them.
        logger.info("vpred-launch: %s", text)


def _end_orphans(plan: LaunchPlan) -> None:
    """Kill ranks on this host that outlived mpirun, and wait until they are gone."""
    deadline_s = time.monotonic() + _ORPHANS_S
    while (pids := workers_of(plan.run_dir, plan.attempt)) and time.monotonic() < deadline_s:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S / 4)
