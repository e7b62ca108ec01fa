"""Keeps attempts/0001/attempt.json up to date while an attempt runs: what it was and what it cost."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launcher.contract.run_dir import Outcome, Phase, RankStatus, RunDir
from launcher.planning.plan import LaunchPlan
from launcher.rank.lease import Lease
from launcher.records.attempt_record import AttemptRecord, lost_time, progress_of
from launcher.records.event_log import EventLog
from launcher.run.published import Published
from launcher.supervision.progress import Progress
from launcher.supervision.verdict import Verdict

logger = logging.getLogger(__name__)


_KEEP_S = 10.0  # the record is written this often, for a launcher that is killed


@dataclass
class AttemptRecorder:
    """Records one attempt.

    Forwards every status to `shown`, renews the lease, and saves the record after the first step and at intervals.

    earlier: records of the attempts before this one
    """

    run: RunDir
    record: AttemptRecord
    earlier: Sequence[AttemptRecord]
    lease: Lease
    shown: Progress
    events: EventLog
    published: Published
    statuses: Mapping[int, RankStatus] = field(default_factory=dict)
    progress_unix_s: float = 0.0
    _kept_s: float = field(default_factory=time.monotonic)
    _reached: int | None = None
    _reached_s: float | None = None

    def update(self, statuses: Mapping[int, RankStatus]) -> None:
        self.lease.renew()
        self.shown.update(statuses)
        if _places(statuses) != _places(self.statuses):
            self.progress_unix_s = time.time()
        self.statuses = statuses
        self._count_trained()
        if len(statuses) == self.record.world_size and not self.record.lost.compile_s:
            lost = lost_time(self.record, self._before, statuses)
            if lost.compile_s:
                self._keep(self.record.model_copy(update={"lost": lost, **self._steps()}))
        if time.monotonic() - self._kept_s >= _KEEP_S:
            self._keep(self.record.model_copy(update=self._steps()))
        self.published.update([*self.earlier, self.record], statuses)

    @property
    def _before(self) -> AttemptRecord | None:
        return self.earlier[-1] if self.earlier else None

    def _count_trained(self) -> None:
        """Add the time since the step before, if no earlier attempt had made this one. The first step compiles."""
        lead = max((status.step for status in self.statuses.values()), default=None)
        if lead is None or lead == self._reached:
            return
        now_s = time.monotonic()
        if self._reached_s is not None and lead > max((record.last_step for record in self.earlier), default=0):
            trained_s = self.record.trained_s + now_s - self._reached_s
            self.record = self.record.model_copy(update={"trained_s": trained_s})
        if self._reached is not None:
            self._reached_s = now_s
        self._reached = lead

    def line(self, text: str) -> None:
        self.shown.line(text)

    def close(self) -> None:
        self.shown.close()

    def begin(self) -> None:
        """Record the attempt's start. Raises OSError: when its directory cannot be made."""
        self.run.attempt(self.record.attempt).root.mkdir(parents=True)
        self.lease.renew()
        step = self.run.committed_step()
        lost = lost_time(self.record, self._before, {})
        self._keep(self.record.model_copy(update={"resumed_step": step, "checkpoint_step": step, "lost": lost}))
        hosts, ranks = self.record.hosts, self.record.world_size
        self.events.write("attempt_begun", self.record.attempt, hosts=hosts, ranks=ranks, resumed_step=step)

    def end(self, plan: LaunchPlan, verdict: Verdict) -> None:
        """Record that the attempt has ended with `verdict`."""
        now = time.time()
        failed = None if verdict.failure is None else verdict.failure.rank
        host = next((place.host for place in plan.ranks if place.rank == failed), None)
        update = {
            "ended_unix_s": now,
            "exit_code": int(verdict.exit_code),
            "text": verdict.text,
            "host": host,
            "detection_s": max(0.0, now - self._failed_unix_s(failed, now)),
            "lost": lost_time(self.record, self._before, self.statuses),
            **self._steps(),
        }
        self._keep(self.record.model_copy(update=update))
        self.events.write(
            "attempt_ended",
            self.record.attempt,
            exit_code=int(verdict.exit_code),
            text=verdict.text,
            rank=failed,
            host=host,
            checkpoint_step=self.record.checkpoint_step,
        )

    def _steps(self) -> dict[str, float]:
        if not self.statuses:
            return {}
        told = (status.checkpoint_step or 0 for status in self.statuses.values())
        checkpoint = max(self.run.committed_step(), *told)
        return {**progress_of(self.record, self.statuses), "checkpoint_step": checkpoint}

    def _failed_unix_s(self, rank: int | None, now: float) -> float:
        """Return when the failed rank ended. Without its outcome: when any rank last entered a phase or made a step."""
        outcome = None if rank is None else Outcome.read(self.run.attempt(self.record.attempt).outcome(rank))
        return outcome.ended_unix_s if outcome is not None else self.progress_unix_s or now

    def _keep(self, record: AttemptRecord) -> None:
        self.record, self._kept_s = record, time.monotonic()
        try:
            record.write(self.run.attempt(record.attempt).record)
        except OSError as error:  # a full disk may fail the attempt, but must not end the launcher's watch
            place = error.filename or self.run.root
            logger.warning("%s: %s; the record of the attempt is not kept", place, error.strerror)
        self.published.keep([*self.earlier, record], self.statuses)


def first_record(plan: LaunchPlan) -> AttemptRecord:
    """Make the record of an attempt that starts now."""
    ranks = len(plan.ranks)
    return AttemptRecord(attempt=plan.attempt, hosts=plan.hosts, world_size=ranks, started_unix_s=time.time())


def _places(statuses: Mapping[int, RankStatus]) -> dict[int, tuple[Phase, int]]:
    return {rank: (status.phase, status.step) for rank, status in statuses.items()}
