"""What each attempt was and what it cost: attempts/0001/attempt.json, kept up to date while it runs."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launcher.contract.config import Section
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import Outcome, Phase, RankStatus, Record, RunDir
from launcher.launcher_metrics import write_launcher_metrics
from launcher.lease import Lease
from launcher.plan import LaunchPlan
from launcher.progress import Progress
from launcher.verdict import Verdict


class LostTime(Section):
    """Seconds that did not train.

    Of the failure before: until it was noticed, until the next start, and steps trained again times the time of a step.
    Of this attempt: until all ranks are set up, until their state is loaded, the first step, which compiles.
    """

    detection_s: float = 0.0
    delay_s: float = 0.0
    rollback_s: float = 0.0
    start_s: float = 0.0
    load_s: float = 0.0
    compile_s: float = 0.0


class AttemptRecord(Record):
    """`host`: whose failure ended it. Steps and step_s (mean, without the first) as the ranks told them last.

    checkpoint_step: the newest that is committed, by what lies in the run directory too: ranks hear of a commit a step
    late, and may die in that step.
    """

    attempt: int
    hosts: tuple[str, ...]
    world_size: int
    started_unix_s: float
    ended_unix_s: float | None = None
    exit_code: int | None = None
    text: str = ""
    host: str | None = None
    resumed_step: int = 0
    last_step: int = 0
    checkpoint_step: int = 0
    step_s: float = 0.0
    detection_s: float = 0.0
    lost: LostTime = LostTime()


@dataclass
class Account:
    """The account of one attempt. It sees what `shown` is shown, renews the lease and notes the first step."""

    run: RunDir
    record: AttemptRecord
    before: AttemptRecord | None
    lease: Lease
    shown: Progress
    statuses: Mapping[int, RankStatus] = field(default_factory=dict)
    progress_unix_s: float = 0.0

    def update(self, statuses: Mapping[int, RankStatus]) -> None:
        self.lease.renew()
        self.shown.update(statuses)
        if _places(statuses) != _places(self.statuses):
            self.progress_unix_s = time.time()
        self.statuses = statuses
        if len(statuses) == self.record.world_size and not self.record.lost.compile_s:
            lost = lost_time(self.record, self.before, statuses)
            if lost.compile_s:
                self._keep(self.record.model_copy(update={"lost": lost, **self._steps()}))

    def line(self, text: str) -> None:
        self.shown.line(text)

    def close(self) -> None:
        self.shown.close()

    def begin(self) -> None:
        """The attempt is about to start. Raises OSError when there is no place for it."""
        self.run.attempt(self.record.attempt).root.mkdir(parents=True)
        self.lease.renew()
        step = self.run.committed_step()
        self._keep(self.record.model_copy(update={"resumed_step": step, "checkpoint_step": step}))

    def end(self, plan: LaunchPlan, verdict: Verdict) -> None:
        """The attempt has ended with `verdict`."""
        now = time.time()
        failed = None if verdict.failure is None else verdict.failure.rank
        host = next((place.host for place in plan.ranks if place.rank == failed), None)
        update = {
            "ended_unix_s": now,
            "exit_code": int(verdict.exit_code),
            "text": verdict.text,
            "host": host,
            "detection_s": max(0.0, now - self._failed_unix_s(failed, now)),
            "lost": lost_time(self.record, self.before, self.statuses),
            **self._steps(),
        }
        self._keep(self.record.model_copy(update=update))

    def _steps(self) -> dict[str, float]:
        if not self.statuses:
            return {}
        lead = max(self.statuses.values(), key=lambda status: status.step)
        resumed = self.record.resumed_step if lead.resumed_step is None else lead.resumed_step
        began = lead.phase_unix_s.get("training")
        steps = lead.step - resumed - 1
        told = (status.checkpoint_step or 0 for status in self.statuses.values())
        return {
            "resumed_step": resumed,
            "last_step": lead.step,
            "checkpoint_step": max(self.run.committed_step(), *told),
            "step_s": 0.0 if began is None or steps < 1 else max(0.0, lead.updated_unix_s - began) / steps,
        }

    def _failed_unix_s(self, rank: int | None, now: float) -> float:
        """When the failed rank ended; without its account when any rank last entered a phase or made a step."""
        outcome = None if rank is None else Outcome.read(self.run.attempt(self.record.attempt).outcome(rank))
        return outcome.ended_unix_s if outcome is not None else self.progress_unix_s or now

    def _keep(self, record: AttemptRecord) -> None:
        self.record = record
        try:
            record.write(self.run.attempt(record.attempt).record)
            write_launcher_metrics(self.run, read_records(self.run))
        except OSError as error:  # a full disk is the attempt's trouble, and must not end the launcher's watch
            text = f"{error.filename or self.run.root}: {error.strerror}; the account of the attempt is not kept"
            print(text, file=sys.stderr)


def first_record(plan: LaunchPlan) -> AttemptRecord:
    """The record of an attempt that starts now."""
    ranks = len(plan.ranks)
    return AttemptRecord(attempt=plan.attempt, hosts=plan.hosts, world_size=ranks, started_unix_s=time.time())


def lost_line(records: Sequence[AttemptRecord]) -> str:
    """Where the time of several attempts went, for the operator."""
    totals = {cause: sum(getattr(each.lost, cause) for each in records) for cause in LostTime.model_fields}
    parts = ", ".join(f"{cause.removesuffix('_s')} {seconds:.1f} s" for cause, seconds in totals.items())
    return f"{len(records)} attempts; not trained in {sum(totals.values()):.1f} s: {parts}"


def read_records(run: RunDir) -> list[AttemptRecord]:
    """The records of all attempts that have one, in their order."""
    found = (AttemptRecord.read(run.attempt(number).record) for number in range(1, run.last_attempt() + 1))
    return [record for record in found if record is not None]


def lost_time(record: AttemptRecord, before: AttemptRecord | None, statuses: Mapping[int, RankStatus]) -> LostTime:
    """As far as the ranks have come: a part that has not ended yet is 0."""
    starting = _latest(statuses, "starting")
    loaded = _latest(statuses, "validating") if _latest(statuses, "validating") else _latest(statuses, "compiling")
    compiling, trained = _latest(statuses, "compiling"), _latest(statuses, "training")
    parts = {
        "start_s": _span(record.started_unix_s, starting),
        "load_s": _span(starting, loaded),
        "compile_s": _span(compiling, trained),
    }
    if before is not None and before.exit_code not in (None, ExitCode.OK, ExitCode.PREEMPTED):
        parts["detection_s"] = before.detection_s
        parts["delay_s"] = _span(before.ended_unix_s, record.started_unix_s)
        if loaded is not None:
            resumed = max((status.resumed_step or 0 for status in statuses.values()), default=0)
            parts["rollback_s"] = max(0, before.last_step - resumed) * before.step_s
    return LostTime(**parts)


def _places(statuses: Mapping[int, RankStatus]) -> dict[int, tuple[Phase, int]]:
    return {rank: (status.phase, status.step) for rank, status in statuses.items()}


def _latest(statuses: Mapping[int, RankStatus], phase: Phase) -> float | None:
    """When the last rank entered `phase`; None while some have not."""
    times = [status.phase_unix_s.get(phase) for status in statuses.values()]
    known = [each for each in times if each is not None]
    return max(known) if known and len(known) == len(times) else None


def _span(start: float | None, end: float | None) -> float:
    return 0.0 if start is None or end is None else max(0.0, end - start)
