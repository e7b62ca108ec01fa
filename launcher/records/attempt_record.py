"""Defines attempts/0001/attempt.json: what an attempt was and what it cost."""

from collections.abc import Mapping, Sequence

from launcher.contract.config import Section
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import Phase, RankStatus, Record, RunDir


class LostTime(Section):
    """Lists the seconds that did not train.

    detection_s: until the failure before was noticed
    delay_s: from its end until this start
    rollback_s: steps that are trained again, times the time of a step
    start_s: until all ranks of this attempt are set up
    load_s: until their state is loaded
    compile_s: the first step, which compiles
    """

    detection_s: float = 0.0
    delay_s: float = 0.0
    rollback_s: float = 0.0
    start_s: float = 0.0
    load_s: float = 0.0
    compile_s: float = 0.0


class AttemptRecord(Record):
    """Records one attempt.

    host: the host whose failure ended it
    resumed_step, last_step: as the ranks reported them last
    step_s: mean time of a step without the first, as the ranks reported it last, s
    total_steps: of the complete run, 0 until a rank has reported
    trained_s: time of the steps that no earlier attempt had made, s
    checkpoint_step: the newest committed step, also by the files in the run directory: ranks learn of a commit one step
    late, and may die in that step
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
    total_steps: int = 0
    trained_s: float = 0.0
    detection_s: float = 0.0
    lost: LostTime = LostTime()


def lost_line(records: Sequence[AttemptRecord]) -> str:
    """Say for the operator where the time of several attempts went."""
    totals = {cause: sum(getattr(each.lost, cause) for each in records) for cause in LostTime.model_fields}
    parts = ", ".join(f"{cause.removesuffix('_s')} {seconds:.1f} s" for cause, seconds in totals.items())
    return f"{len(records)} attempts; not trained in {sum(totals.values()):.1f} s: {parts}"


def read_records(run: RunDir) -> list[AttemptRecord]:
    """Read the records of all attempts that have one, in their order."""
    found = (AttemptRecord.read(run.attempt(number).record) for number in range(1, run.last_attempt() + 1))
    return [record for record in found if record is not None]


def progress_of(record: AttemptRecord, statuses: Mapping[int, RankStatus]) -> dict[str, float]:
    """Return the fields of a record that say how far the ranks have come. It is empty before they report."""
    if not statuses:
        return {}
    lead = max(statuses.values(), key=lambda status: status.step)
    resumed = record.resumed_step if lead.resumed_step is None else lead.resumed_step
    began = lead.phase_unix_s.get("training")
    steps = lead.step - resumed - 1
    return {
        "resumed_step": resumed,
        "last_step": lead.step,
        "total_steps": lead.total_steps,
        "step_s": 0.0 if began is None or steps < 1 else max(0.0, lead.updated_unix_s - began) / steps,
    }


def without_verdict(record: AttemptRecord, statuses: Mapping[int, RankStatus], lease_unix_s: float) -> AttemptRecord:
    """Complete the record of an attempt whose launcher was killed, by the last signs of life.

    lease_unix_s: when the launcher last renewed its lease
    """
    ended = max([lease_unix_s, *(status.updated_unix_s for status in statuses.values())])
    return record.model_copy(update={"ended_unix_s": ended, **progress_of(record, statuses)})


def lost_time(record: AttemptRecord, before: AttemptRecord | None, statuses: Mapping[int, RankStatus]) -> LostTime:
    """Compute the lost time as far as the ranks have come. A part that has not ended yet is 0.

    before: the attempt before, with its end also where its launcher was killed
    """
    starting = _latest(statuses, "starting")
    loaded = _latest(statuses, "validating") if _latest(statuses, "validating") else _latest(statuses, "compiling")
    compiling, trained = _latest(statuses, "compiling"), _latest(statuses, "training")
    parts = {
        "start_s": _span(record.started_unix_s, starting),
        "load_s": _span(starting, loaded),
        "compile_s": _span(compiling, trained),
    }
    if before is not None and before.exit_code not in (ExitCode.OK, ExitCode.PREEMPTED):
        parts["detection_s"] = before.detection_s
        parts["delay_s"] = _span(before.ended_unix_s, record.started_unix_s)
        if loaded is not None:
            resumed = max((status.resumed_step or 0 for status in statuses.values()), default=0)
            parts["rollback_s"] = max(0, before.last_step - resumed) * before.step_s
    return LostTime(**parts)


def _latest(statuses: Mapping[int, RankStatus], phase: Phase) -> float | None:
    """Return when the last rank entered `phase`, None while some have not."""
    times = [status.phase_unix_s.get(phase) for status in statuses.values()]
    known = [each for each in times if each is not None]
    return max(known) if known and len(known) == len(times) else None


def _span(start: float | None, end: float | None) -> float:
    return 0.0 if start is None or end is None else max(0.0, end - start)
