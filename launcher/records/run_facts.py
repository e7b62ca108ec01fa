"""Gathers what the files of a run say about it now: the base of its metrics and of the live page."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RankStatus, RunDir, Summary
from launcher.records.attempt_record import AttemptRecord, read_records
from launcher.records.event_log import Event, last_event
from launcher.records.plan_record import PlannedRun
from launcher.records.rank_files import AttemptFiles
from launcher.records.run_lock import launcher_lives
from launcher.records.straggler_record import Straggler, Stragglers

# lost: nothing runs, and the launcher left no verdict; waiting: no attempt has begun
RunStateName = Literal["waiting", "running", "complete", "stopped", "failed", "lost"]
RUN_STATES: tuple[RunStateName, ...] = get_args(RunStateName)
ALIVE_S = 15.0


@dataclass(frozen=True)
class RunFacts:
    """Describes a run at one moment.

    name: value of the label `run`
    lives: a launcher holds the run
    complete: the trainer has left its summary
    event: the newest event; a run of an earlier version may have none
    last_attempt: number of the newest attempt, 0 before the first
    records: of the attempts that have one, in their order
    statuses: newest status of each rank that has begun in the newest attempt
    ended: ranks of the newest attempt whose trainer has ended
    heartbeat_unix_s: when the launcher last showed that it lives
    free_bytes: of the disk with the run directory
    """

    run: RunDir
    name: str
    now_unix_s: float
    lives: bool
    complete: bool
    event: Event | None
    plan: PlannedRun
    last_attempt: int
    records: tuple[AttemptRecord, ...]
    statuses: Mapping[int, RankStatus]
    ended: frozenset[int]
    stragglers: tuple[Straggler, ...]
    heartbeat_unix_s: float | None
    free_bytes: int | None

    @property
    def state(self) -> RunStateName:
        """Say how the run stands, by the launcher if one lives, else by what it left."""
        if self.lives:
            return "running"
        if self.last_attempt == 0:
            return "waiting"
        record, code = self.record, None
        if self.event is not None and self.event.event == "run_ended":
            code = (self.event.model_extra or {}).get("exit_code")
        elif record is None or record.exit_code is None:
            return "lost"
        elif self.event is not None and self.event.event == "restart_decided":
            return "lost"  # killed while it waited to start again
        else:
            code = record.exit_code
        if code == ExitCode.OK and self.complete:
            return "complete"
        return "stopped" if code == ExitCode.PREEMPTED else "failed"

    @property
    def record(self) -> AttemptRecord | None:
        """Return the record of the newest attempt."""
        return self.records[-1] if self.records and self.records[-1].attempt == self.last_attempt else None

    @property
    def attempt_runs(self) -> bool:
        """Return whether ranks run now: between two attempts they do not, though the run is running."""
        return self.state == "running" and self.record is not None and self.record.exit_code is None

    @property
    def lead(self) -> RankStatus | None:
        """Return the status of the rank that is farthest."""
        return max(self.statuses.values(), key=lambda status: status.step, default=None)

    @property
    def step(self) -> int:
        """Return the step that the newest attempt has reached."""
        record = self.record
        return max(self.lead.step if self.lead else 0, record.resumed_step if record else 0)

    @property
    def total_steps(self) -> int | None:
        """Return the steps of the complete run, as the newest attempt whose ranks have reported says."""
        if self.lead is not None:
            return self.lead.total_steps
        return next((record.total_steps for record in reversed(self.records) if record.total_steps), None)

    @property
    def checkpoint_step(self) -> int:
        """Return the newest committed step that a record or a rank knows, 0 without one."""
        told = (status.checkpoint_step or 0 for status in self.statuses.values())
        return max([0, *(record.checkpoint_step for record in self.records), *told])

    def alive(self) -> list[RankStatus]:
        """Return the statuses of the ranks that live: young ones, whose trainer has not ended."""
        young = self.now_unix_s - ALIVE_S
        return [each for rank, each in self.statuses.items() if rank not in self.ended and each.updated_unix_s > young]

    def without_verdict(self) -> int:
        """Count the attempts whose launcher left no verdict, without the one that runs."""
        judged = sum(record.exit_code is not None for record in self.records)
        return self.last_attempt - judged - self.attempt_runs


class RunReader:
    """Reads a run again and again. Ranks' files are read only where they have changed."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._files = AttemptFiles(run.attempt(0))

    def read(self, now_unix_s: float) -> RunFacts:
        """Read the run as it is at `now_unix_s`.

        Raises DamagedRecordError: when a record of the launcher is damaged. Raises OSError: when one cannot be read.
        """
        run, last = self._run, self._run.last_attempt()
        attempt = run.attempt(last)
        if self._files.attempt != attempt:
            self._files = AttemptFiles(attempt)
        self._files.look(now_unix_s)
        records = tuple(read_records(run))
        slow = Stragglers.read(attempt.stragglers_json)
        plan = PlannedRun.read(run.plan_json) or PlannedRun()
        return RunFacts(
            run=run,
            name=plan.run_name or printable(run.root.name),
            now_unix_s=now_unix_s,
            lives=launcher_lives(run.lock, now_unix_s),
            complete=Summary.read(run.summary_json) is not None,
            event=last_event(run.events_jsonl),
            plan=plan,
            last_attempt=last,
            records=records,
            statuses=self._files.statuses,
            ended=frozenset(self._files.outcomes),
            stragglers=() if slow is None else slow.ranks,
            heartbeat_unix_s=newest_time([run.lock, attempt.lease]),
            free_bytes=free_bytes(run.root),
        )


def printable(text: str) -> str:
    """Return text that UTF-8 can hold: bytes of a file name that are not UTF-8 are written as \\udcXX."""
    return text.encode(errors="backslashreplace").decode()


def newest_time(paths: Sequence[Path]) -> float | None:
    """Return the newest time at which one of the files was written or touched, None when there is none."""
    times = []
    for path in paths:
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=None)


def free_bytes(root: Path) -> int | None:
    try:
        return shutil.disk_usage(root).free
    except OSError:
        return None
