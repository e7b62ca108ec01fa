"""Defines what a rank of `vpred-launch doctor` reports: one result for each thing that it has tried."""

from typing import Literal

from launcher.contract.config import Section
from launcher.contract.run_dir import Record

Verdict = Literal["ok", "failed", "left_out"]


class CheckResult(Section):
    """Reports one item of a check on one rank.

    check: name of the check
    subject: what was tried, such as an operation; with `check` it identifies the item on every rank
    found: the result in words
    wanted: what passes, empty where nothing is demanded
    remedy: what to do if this fails, is slow, or differs between ranks
    figure, unit: the result as a number
    least_share: a rank is slow if its figure is below this share of the other ranks' median; 0 compares nothing
    same: a value that all ranks must share; empty compares nothing
    """

    check: str
    subject: str
    verdict: Verdict
    found: str
    wanted: str = ""
    remedy: str = ""
    figure: float | None = None
    unit: str = ""
    least_share: float = 0.0
    same: str = ""


class DoctorRecord(Record):
    """Holds a rank's results so far.

    check: the check that runs now
    subject: the item of it
    complete: all checks have run
    """

    rank: int
    check: str
    subject: str = ""
    results: tuple[CheckResult, ...] = ()
    complete: bool = False
