"""Reads what the ranks of one start have left, and says why some did not come to the end of their checks."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from launcher.contract.doctor_record import DoctorRecord
from launcher.contract.run_dir import AttemptDir, DamagedRecordError
from launcher.doctor.diagnosis import Trouble
from launcher.planning.plan import LaunchPlan
from launcher.supervision.failure import Failure
from launcher.supervision.verdict import Verdict

_START = "start"  # what a rank does before it has a record


@dataclass(frozen=True)
class Examined:
    """Holds the results of one start.

    records: in rank order
    troubles: why ranks are not complete; empty when all are
    """

    records: tuple[DoctorRecord, ...]
    hosts: Mapping[int, str]
    troubles: tuple[Trouble, ...]


def read_examined(attempt: AttemptDir, plan: LaunchPlan, verdict: Verdict, *, stopped: bool) -> Examined:
    """Read the records of all ranks after their end.

    stopped: a person or a scheduler has asked for the end
    """
    records = tuple(_record(attempt, place.rank) for place in plan.ranks)
    hosts = {place.rank: place.host for place in plan.ranks}
    rest = [record for record in records if not record.complete]
    troubles: list[Trouble] = []
    if rest and (stopped or verdict.failure is None):
        first = rest[0]
        found = "stopped on request before the end" if stopped else verdict.text
        troubles.append(Trouble(first.check, first.subject, None, None, found, "start the doctor again"))
    elif rest and verdict.failure is not None:
        failure = verdict.failure
        record = records[failure.rank]
        if not _has_said_why(record, failure):
            troubles.append(_of_failure(record, failure, hosts[failure.rank]))
    return Examined(records, hosts, tuple(troubles))


def _record(attempt: AttemptDir, rank: int) -> DoctorRecord:
    """Read a rank's record. A host that lost power may leave an empty one, and then its results are lost."""
    found = None
    with suppress(DamagedRecordError):
        found = DoctorRecord.read(attempt.doctor(rank))
    return found or DoctorRecord(rank=rank, check=_START)


def _has_said_why(record: DoctorRecord, failure: Failure) -> bool:
    """Return whether the rank ended itself because of its last result, an error in a check that needs all ranks."""
    return failure.kind == "exit" and bool(record.results) and record.results[-1].verdict == "failed"


def _of_failure(record: DoctorRecord, failure: Failure, host: str) -> Trouble:
    cause = f": {failure.cause}" if failure.cause else ""
    remedy = f"{failure.hint}; log: {failure.log}" if failure.hint else f"log: {failure.log}"
    if failure.kind == "hang":
        remedy = f"the stack of it is at the end of {failure.log}"
    text = f"{failure.ended}{cause}"
    return Trouble(record.check, record.subject, failure.rank, host, text, remedy)
